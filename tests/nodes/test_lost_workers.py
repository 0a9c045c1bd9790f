"""Single workers are killed, moved or deleted."""

import json
import os
import signal

import pytest

from tests.e2e.processes import rank_process
from tests.nodes.operator_release import OperatorRelease
from tests.nodes.scenario import Scenario, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LONG = {"maxSteps": 200, "globalBatchSize": 6, "sequenceLength": 128}


def test_killed_rank(scenario: Scenario):
    scenario.submit("killed", training=LONG)
    scenario.until_step("killed", 25)
    os.kill(rank_process("killed", 1), signal.SIGKILL)
    done = scenario.succeeded("killed")
    first, second = done["attempts"]
    assert (first["outcome"], first["counted"]) == ("Failed", True)
    assert second["firstStep"] >= 20
    assert "SIGKILL" in first["message"]
    assert "worker 1" in first["message"]
    # A kubelet reports the end of the containers before that of the pod, and the log of a
    # worker that has ended by itself can still be read.
    assert "killed-1-1" in scenario.pods()
    scenario.log("killed-1-1")


def test_drained_node(scenario: Scenario, release: OperatorRelease):
    scenario.submit("drained", training=LONG)
    node = scenario.node_of("drained-1-1")
    release.leave(node)  # Otherwise no operator sees how the drained worker ends.
    scenario.until_step("drained", 25)
    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    try:
        scenario.cluster.kubectl("drain", node, *flags)
        done = scenario.succeeded("drained")
    finally:
        scenario.cluster.kubectl("uncordon", node)
    first, second = done["attempts"]
    assert (first["outcome"], first["counted"]) == ("Preempted", False)
    assert second["firstStep"] == first["lastStep"] >= 25
    assert done["usage"]["lostDeviceSeconds"] == 0
    assert not done["usage"]["estimated"]


def test_deleted_job(scenario: Scenario):
    scenario.submit("again", workers=workers(1), training=LONG)
    scenario.until_step("again", 5)
    scenario.kubectl("delete", "ftj", "again", "--timeout=60s")
    # A new job of the same name waits for the pods of the old one, and creates none before.
    scenario.submit(
        "again",
        workers=workers(1),
        checkpoints={"storage": "pvc://w/runs/again2", "intervalSteps": 20},
    )
    old = {pod["metadata"]["uid"] for pod in scenario.pods().values()}
    done = scenario.finished("again")
    assert done["phase"] == "Succeeded", done["message"]
    assert done.get("restarts", 0) == 0
    assert not old & {pod["metadata"]["uid"] for pod in scenario.pods().values()}
    scenario.kubectl("delete", "ftj", "again", "--timeout=60s")
    scenario.until("all pods to be deleted", lambda: not scenario.pods(), 60)


def test_out_of_memory(scenario: Scenario):
    """A limit that the supervisor fits into, but not torch; the prepare pod does not inherit it."""
    limited = {"resources": {"limits": {"memory": "300Mi"}, "requests": {"memory": "300Mi"}}}
    scenario.submit("small", workers=workers(1, limited))
    done = scenario.finished("small")
    assert (done["phase"], done["reason"]) == ("Failed", "OutOfMemory"), done["message"]
    # The message names the pod and the limit, and the field to change.
    for part in ("small-2-0", "300Mi", "workers.template"):
        assert part in done["message"], done["message"]


def test_sidecars(scenario: Scenario):
    script = "trap 'exit 0' TERM; while true; do sleep 1; done"
    sidecar = {
        "name": "mesh",
        "image": scenario.trainer_image,
        "command": ["sh", "-c", script],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = workers(2)
    spec["template"]["spec"]["containers"].append(sidecar)
    native = sidecar | {"name": "native", "restartPolicy": "Always"}
    spec["template"]["spec"]["initContainers"] = [native]
    scenario.submit("meshed", workers=spec)
    done = scenario.succeeded("meshed")
    assert done.get("restarts", 0) == 0
    # The result is read although the pod still runs its sidecar, and then the devices are free.
    scenario.until("no pod to run", lambda: not _running(scenario), 60)
    assert json.dumps(done["usage"])


def _running(scenario: Scenario) -> list[str]:
    pods = scenario.pods()
    return [name for name, pod in pods.items() if pod["status"]["phase"] == "Running"]
