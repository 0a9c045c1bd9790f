"""Stops that come before there is anything to stop, and supervisors that fail themselves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_api.run import Result
from finetune_api.storage import RunFile
from finetune_trainer.common import machine
from tests.trainer.gang import Pod, listens, make_job

# SIGTERM at the very moment at which the supervisor begins to import what takes long.
SITE = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "pydantic":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
"""


def start(tmp_path: Path, address: str, env: dict[str, str], **config: object) -> Pod:
    """A supervisor with an environment of its own."""
    wanted = make_job(tmp_path).config | {"mounts": {"w": str(tmp_path)}} | config
    place = {
        "FINETUNE_RUN": json.dumps(wanted),
        "FINETUNE_POD_IP": address,
        "FINETUNE_TERMINATION_LOG": str(tmp_path / "result.json"),
        "PET_NNODES": "2",
        "PET_NODE_RANK": "0",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "nobody.invalid",
        "PET_MASTER_PORT": "29500",
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "finetune_trainer"]
        process = subprocess.Popen(command, env=os.environ | place | env, stderr=output)
    return Pod(process, address, tmp_path / "result.json", log)


@pytest.fixture
def killed() -> list[Pod]:
    pods: list[Pod] = []
    yield pods
    for pod in pods:
        pod.process.kill()
        pod.process.wait()


def test_a_stop_during_the_first_imports_is_heard(tmp_path: Path, killed: list[Pod]) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    pod = start(tmp_path, "127.255.98.4", {"PYTHONPATH": path}, role="prepare")
    killed.append(pod)
    assert pod.wait(60) == 75, pod.log.read_text()
    assert (pod.result.outcome, pod.result.reason) == ("Stopped", "Stopped")
    assert pod.result.message.startswith("prepare was stopped; nothing is lost")


def test_a_stop_while_the_master_has_no_address_is_heard(tmp_path: Path, killed: list[Pod]) -> None:
    pod = start(tmp_path, "127.255.98.5", {"PET_NODE_RANK": "1"}, role="worker", attempt=1)
    killed.append(pod)
    deadline = time.monotonic() + 60
    while not listens(pod.address, 29600):
        assert time.monotonic() < deadline, pod.log.read_text()
        time.sleep(0.05)
    pod.process.send_signal(signal.SIGTERM)
    assert pod.wait(20) == 75
    assert pod.result.message == "stopped while looking for nobody.invalid; nothing is lost"


def test_a_supervisor_that_fails_leaves_a_result(tmp_path: Path, killed: list[Pod]) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/fence.1").write_text("{")
    mine = RunFile(
        job_uid="uid-1", job_name="job", job_namespace="default", model_revision="", run_digest=""
    )
    (tmp_path / "runs/a/run.json").write_text(mine.to_json())
    pod = start(tmp_path, "127.255.98.6", {}, role="worker", attempt=1)
    killed.append(pod)
    assert pod.wait(60) == 1
    result: Result = pod.result
    assert (result.outcome, result.reason) == ("Failed", "Crashed")
    assert "the supervisor failed: ValidationError" in result.message
    assert "Traceback" in pod.log.read_text()


QUOTAS = {
    "version 2": ({"cpu.max": "200000 100000\n"}, 2),
    "version 2, part of a core": ({"cpu.max": "50000 100000\n"}, 1),
    "version 2, no limit": ({"cpu.max": "max 100000\n"}, 8),
    "version 1": (
        {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1, no limit": (
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "no cgroup": ({}, 8),
}


@pytest.mark.parametrize(("files", "expected"), QUOTAS.values(), ids=QUOTAS.keys())
def test_usable_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.usable_cpus(tmp_path) == expected
