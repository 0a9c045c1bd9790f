"""Real training on the local cluster, undisturbed and with killed ranks, pods and operators."""

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


def device_seconds(pod) -> float:
    """Return the seconds from the binding of a pod until its trainer container ended."""
    conditions = {c["type"]: c for c in pod["status"]["conditions"]}
    begin = conditions["PodScheduled"]["lastTransitionTime"]
    (container,) = pod["status"]["containerStatuses"]
    end = container["state"]["terminated"]["finishedAt"]
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


@pytest.fixture(scope="module")
def undisturbed(cluster, workspace, tmp_path_factory):
    """Return the exported weights of an undisturbed run, by parameter name.

    The first test fills them in.
    """
    return {}


def weights(workspace: Path, job: str):
    return load_file(workspace / "runs" / job / "final" / "model.safetensors")


def test_a_job_succeeds_with_a_model_that_loads(cluster, workspace, operator, submit, undisturbed):
    submit("calm")
    done = finished(cluster, "calm", 180)
    assert done["phase"] == "Succeeded", done["message"]
    assert done["evaluation"]["last"] < done["evaluation"]["baseline"]
    gang = [p for p in pods(cluster, "calm") if p["metadata"]["name"] != "calm-prepare"]
    assert abs(done["usage"]["deviceSeconds"] - sum(device_seconds(p) for p in gang)) <= len(gang)
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


@pytest.mark.parametrize("kill_operator", [False, True], ids=["operator-up", "operator-killed"])
def test_a_killed_rank_and_a_deleted_pod_do_not_change_the_weights(
    cluster, workspace, operator, submit, undisturbed, kill_operator
):
    name = f"disturbed{int(kill_operator)}"
    submit(name)
    wait_for_step(cluster, f"{name}-1-0", 55)
    os.kill(rank_process(name, 1), signal.SIGKILL)
    if kill_operator:
        restart_later(operator)
    wait_for_step(cluster, f"{name}-2-0", 90)
    cluster.kubectl("delete", "pod", f"{name}-2-1", "--wait=false")
    if kill_operator:
        restart_later(operator)
    done = finished(cluster, name, 180)
    assert done["phase"] == "Succeeded", done["message"]
    assert (done["restarts"], done["attempt"]) == (2, 3)
    killed, deleted, last = done["attempts"]
    assert (killed["counted"], deleted["counted"]) == (True, False)
    assert done.get("countedRestarts", 0) == 0  # progress beyond the crash resets the count
    # The gang restarts from the newest checkpoint and repeats the steps after it.
    assert (killed["outcome"], killed["reason"], killed["exitCode"]) == ("Failed", "Crashed", 137)
    assert killed["worker"] == 1
    assert deleted["firstStep"] == 40
    assert done["usage"]["lostDeviceSeconds"] == deleted["lostDeviceSeconds"] > 0
    # The gang saved on SIGTERM: no step is lost and the restart does not count.
    assert deleted["outcome"] == "Preempted"
    assert last["firstStep"] == deleted["lastStep"] > 90
    assert all(torch.equal(w, undisturbed[n]) for n, w in weights(workspace, name).items())


def restart_later(operator: Operator) -> None:
    """Kill the operator and start it again after 20 s."""
    operator.kill()
    time.sleep(20)
    operator.start()


def test_invalid_inputs_fail_without_using_a_device(cluster, workspace, operator, submit):
    data = workspace / "data"
    good = (data / "train.jsonl").read_text().splitlines()[:30]
    (data / "broken.jsonl").write_text("\n".join([*good[:16], "{oops", *good[16:]]) + "\n")
    (data / "no-messages.jsonl").write_text('{"sentence": "x"}\n')
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
    for name, (_, reason, parts) in cases.items():
        done = finished(cluster, f"bad-{name}", 180)
        assert (done["phase"], done["reason"]) == ("Failed", reason), (name, done["message"])
        for part in parts:
            assert part in done["message"], name
        names = [p["metadata"]["name"] for p in pods(cluster, f"bad-{name}")]
        assert names == [f"bad-{name}-prepare"]
        assert status(cluster, f"bad-{name}").get("usage", {}).get("deviceSeconds", 0) == 0
