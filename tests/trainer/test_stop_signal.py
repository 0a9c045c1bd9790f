"""Stops that arrive before any child runs, and supervisors that fail themselves."""

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
from tests.trainer.gang import Pod, listens, make_job

# Sends SIGTERM when the supervisor begins its slow imports.
SITE = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "pydantic":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
"""


def environment(tmp_path: Path, address: str, **config: object) -> dict[str, str]:
    """Return the variables of worker 0 of two, or of a prepare pod."""
    wanted = make_job(tmp_path).config | {"mounts": {"w": str(tmp_path)}} | config
    return {
        "FINETUNE_RUN": json.dumps(wanted),
        "FINETUNE_POD_IP": address,
        "FINETUNE_TERMINATION_LOG": str(tmp_path / "result.json"),
        "PET_NNODES": "2",
        "PET_NODE_RANK": "0",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "missing.invalid",
        "PET_MASTER_PORT": "29500",
    }


def start(tmp_path: Path, address: str, env: dict[str, str], **config: object) -> Pod:
    """Start a supervisor with additional environment variables."""
    place = environment(tmp_path, address, **config)
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


def test_a_stop_during_the_first_imports_is_obeyed(tmp_path: Path, killed: list[Pod]) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    pod = start(tmp_path, "127.255.98.4", {"PYTHONPATH": path}, role="prepare")
    killed.append(pod)
    assert pod.wait(60) == 75, pod.log.read_text()
    assert (pod.result.outcome, pod.result.reason) == ("Stopped", "Stopped")
    assert pod.result.message.startswith("prepare was stopped; nothing is lost")


def test_a_stop_while_the_master_has_no_address_is_obeyed(
    tmp_path: Path, killed: list[Pod]
) -> None:
    pod = start(tmp_path, "127.255.98.5", {"PET_NODE_RANK": "1"}, role="worker", attempt=1)
    killed.append(pod)
    deadline = time.monotonic() + 60
    while not listens(pod.address, 29600):
        assert time.monotonic() < deadline, pod.log.read_text()
        time.sleep(0.05)
    pod.process.send_signal(signal.SIGTERM)
    assert pod.wait(20) == 75
    expected = "stopped while waiting for the address of missing.invalid; nothing is lost"
    assert pod.result.message == expected


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
