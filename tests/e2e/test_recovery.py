"""Real training on the local cluster: it ends well, also when it is disturbed."""

import os
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.processes import rank_process, wait_for_step
from tests.installed import Operator, finished, pods, status

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


def spent(pod) -> float:
    """Seconds from bound to a node until the trainer container ended."""
    conditions = {c["type"]: c for c in pod["status"]["conditions"]}
    begin = conditions["PodScheduled"]["lastTransitionTime"]
    (container,) = pod["status"]["containerStatuses"]
    end = container["state"]["terminated"]["finishedAt"]
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


@pytest.fixture(scope="module")
def undisturbed(cluster, workspace, tmp_path_factory):
    """Exported weights of a run that nothing happened to, by parameter name."""
    return {}


def weights(workspace: Path, job: str):
    return load_file(workspace / "runs" / job / "final" / "model.safetensors")


def test_a_job_ends_with_a_model_that_loads(cluster, workspace, operator, submit, undisturbed):
    submit("calm")
    done = finished(cluster, "calm", 180)
    assert done["phase"] == "Succeeded", done["message"]
    assert done["evaluation"]["last"] < done["evaluation"]["baseline"]
    gang = [p for p in pods(cluster, "calm") if p["metadata"]["name"] != "calm-prepare"]
    assert abs(done["usage"]["deviceSeconds"] - sum(spent(p) for p in gang)) <= len(gang)
    assert not done["usage"]["estimated"]
    assert len(done["checkpoints"]) == 2
    for record in done["checkpoints"]:
        assert record["verified"]
        folder = workspace / record["location"].removeprefix("pvc://w/")
        files = [f for f in folder.iterdir() if f.suffix == ".safetensors"]
        assert record["sizeBytes"] >= sum(f.stat().st_size for f in files) > 0
    from transformers import AutoModelForCausalLM

    tuned = AutoModelForCausalLM.from_pretrained(workspace / "runs/calm/final")
    base = AutoModelForCausalLM.from_pretrained(workspace / "model")
    for new, old in zip(tuned.model.layers, base.model.layers, strict=True):
        pairs = zip(new.parameters(), old.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
    undisturbed.update(weights(workspace, "calm"))


@pytest.mark.parametrize("operator_too", [False, True], ids=["operator-up", "operator-killed"])
def test_a_rank_is_killed_and_later_a_pod_deleted(
    cluster, workspace, operator, submit, undisturbed, operator_too
):
    name = f"hurt{int(operator_too)}"
    submit(name)
    wait_for_step(cluster, f"{name}-1-0", 55)
    os.kill(rank_process(name, 1), signal.SIGKILL)
    if operator_too:
        away(operator)
    wait_for_step(cluster, f"{name}-2-0", 90)
    cluster.kubectl("delete", "pod", f"{name}-2-1", "--wait=false")
    if operator_too:
        away(operator)
    done = finished(cluster, name, 180)
    assert done["phase"] == "Succeeded", done["message"]
    assert (done["restarts"], done["attempt"]) == (2, 3)
    killed, deleted, last = done["attempts"]
    assert (killed["counted"], deleted["counted"]) == (True, False)
    assert done.get("countedRestarts", 0) == 0  # a checkpoint beyond it made up for the crash
    # The gang restarts from the newest checkpoint, and does again what came after it.
    assert (killed["outcome"], killed["reason"], killed["exitCode"]) == ("Failed", "Crashed", 137)
    assert killed["worker"] == 1
    assert deleted["firstStep"] == 40
    assert done["usage"]["lostDeviceSeconds"] == deleted["lostDeviceSeconds"] > 0
    # The gang saved on SIGTERM: no step is lost, and no restart counted.
    assert deleted["outcome"] == "Preempted"
    assert last["firstStep"] == deleted["lastStep"] > 90
    assert all(torch.equal(w, undisturbed[n]) for n, w in weights(workspace, name).items())


def away(operator: Operator) -> None:
    """Killed, and started again after a while."""
    operator.kill()
    time.sleep(20)
    operator.start()


def test_bad_inputs_fail_before_a_device_is_held(cluster, workspace, operator, submit):
    data = workspace / "data"
    good = (data / "train.jsonl").read_text().splitlines()[:30]
    (data / "broken.jsonl").write_text("\n".join([*good[:16], "{oops", *good[16:]]) + "\n")
    (data / "no-messages.jsonl").write_text('{"words": "x"}\n')
    (data / "no-assistant.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hello"}]}\n' * 5
    )
    weightless = workspace / "weightless"
    weightless.mkdir()
    for file in (workspace / "model").iterdir():
        if file.suffix != ".safetensors":
            (weightless / file.name).write_bytes(file.read_bytes())
    (workspace / "runs").mkdir(exist_ok=True)
    (workspace / "runs" / "in-the-way").write_text("a file")
    closed = workspace / "closed"
    closed.mkdir(mode=0o555)

    def train(file: str):
        return {"dataset": {"train": [{"source": f"pvc://w/data/{file}"}]}}

    cases = {
        "missing": (train("nowhere.jsonl"), "InputMissing", ["nowhere.jsonl"]),
        "broken": (train("broken.jsonl"), "BadData", ["broken.jsonl", "17"]),
        "no-messages": (train("no-messages.jsonl"), "BadData", ["no-messages.jsonl", "1"]),
        "no-assistant": (train("no-assistant.jsonl"), "BadData", ["no-assistant.jsonl"]),
        "weightless": ({"model": {"source": "pvc://w/weightless"}}, "InputMissing", ["weightless"]),
        "in-the-way": (
            {"checkpoints": {"storage": "pvc://w/runs/in-the-way/run"}},
            "StorageNotWritable",
            ["in-the-way"],
        ),
        "closed": (
            {"checkpoints": {"storage": "pvc://w/closed/run"}},
            "StorageNotWritable",
            ["closed"],
        ),
    }
    for name, (changes, _, _) in cases.items():
        submit(f"bad-{name}", **changes)
    for name, (_, reason, words) in cases.items():
        done = finished(cluster, f"bad-{name}", 180)
        assert (done["phase"], done["reason"]) == ("Failed", reason), (name, done["message"])
        for word in words:
            assert word in done["message"], name
        held = [p["metadata"]["name"] for p in pods(cluster, f"bad-{name}")]
        assert held == [f"bad-{name}-prepare"]
        assert status(cluster, f"bad-{name}").get("usage", {}).get("deviceSeconds", 0) == 0
