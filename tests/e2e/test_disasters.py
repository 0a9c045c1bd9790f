"""What clusters do to jobs: each disaster is real, and the job ends well."""

import json
import os
import signal

import pytest

from finetune_local.cluster import ClusterError
from tests.e2e.processes import rank_process, wait_for_step
from tests.installed import finished, pods, status, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

_CLASS = """
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: urgent}
value: 1000
"""
_INTRUDER = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  priorityClassName: urgent
  restartPolicy: Never
  automountServiceAccountToken: false
  containers:
  - name: main
    image: finetune-trainer:local
    command: [sleep, "15"]
    resources: {{limits: {{finetune.dev/cpu-device: "2"}}}}
"""


def node_of(cluster, pod: str) -> str:
    return cluster.kubectl("get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")


def test_a_preempted_gang_saves_waits_for_room_and_loses_nothing(cluster, operator, submit):
    submit("preempted")
    wait_for_step(cluster, "preempted-1-0", 50)
    cluster.kubectl("apply", "-f", "-", stdin=_CLASS)
    for name in ("intruder-1", "intruder-2"):  # both nodes
        cluster.kubectl("create", "-f", "-", stdin=_INTRUDER.format(name=name))
    queued = wait_for(
        "the second attempt to wait for room",
        lambda: (now := status(cluster, "preempted")).get("reason") == "Unschedulable" and now,
    )
    assert queued["attempt"] == 2
    assert "Insufficient finetune.dev/cpu-device" in queued["message"]
    done = finished(cluster, "preempted", 240)
    cluster.kubectl("delete", "pod", "intruder-1", "intruder-2")
    assert done["phase"] == "Succeeded", done["message"]
    assert (done["restarts"], done.get("countedRestarts", 0)) == (1, 0)
    first, second = done["attempts"]
    assert first["outcome"] == "Preempted"
    assert second["firstStep"] == first["lastStep"] > 50
    assert done["usage"]["lostDeviceSeconds"] == 0
    assert not done["usage"]["estimated"]


def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(cluster, operator, submit):
    # The quickest of what a cluster may be told to do with pods of a node that does not answer.
    gone = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 0}
    workers = {
        "replicas": 2,
        "deviceResource": "finetune.dev/cpu-device",
        "template": {"spec": {"tolerations": [gone | {"effect": "NoExecute"}]}},
    }
    submit("nodeless", workers=workers, runPolicy={"terminationGracePeriodSeconds": 5})
    wait_for_step(cluster, "nodeless-1-0", 60)
    node = node_of(cluster, "nodeless-1-1")
    assert node != node_of(cluster, "nodeless-1-0")
    cluster.kill_component(node, stay_down=True)
    try:
        done = finished(cluster, "nodeless", 400)
    finally:
        cluster.start_component(node)
    assert done["phase"] == "Succeeded", done["message"]
    first, second = done["attempts"]
    assert (first["outcome"], first["counted"]) == ("Failed", True)
    assert first["reason"] in ("PeerLost", "WorkerLost")
    assert first["estimated"]  # nobody saw the end of what ran there
    assert second["firstStep"] == 40
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=90s")


@pytest.mark.parametrize("component", ["kube-apiserver", "etcd"])
def test_a_control_plane_that_restarts_does_not_touch_the_gang(
    cluster, operator, submit, component
):
    name = f"calm-{component}"
    submit(name)
    wait_for_step(cluster, f"{name}-1-0", 30)
    cluster.kill_component(component)
    done = wait_for("the job to succeed", lambda: ended(cluster, name), 240)
    assert done["phase"] == "Succeeded", done["message"]
    assert (done.get("restarts", 0), done["attempt"]) == (0, 1)
    assert operator.running


def ended(cluster, name: str):
    """The status once it has ended; an API server that does not answer has not said so."""
    try:
        found = status(cluster, name)
    except ClusterError:
        return None
    return found if found.get("phase") in ("Succeeded", "Failed") else None


def test_a_frozen_rank_is_a_hang_and_the_gang_starts_again(cluster, operator, submit):
    submit("frozen", runPolicy={"progressDeadlineSeconds": 15})
    wait_for_step(cluster, "frozen-1-0", 60)
    os.kill(rank_process("frozen", 1), signal.SIGSTOP)
    done = finished(cluster, "frozen", 240)
    assert done["phase"] == "Succeeded", done["message"]
    first, second = done["attempts"]
    assert (first["outcome"], first["reason"], first["exitCode"]) == ("Failed", "Hang", 89)
    assert "progressDeadlineSeconds" in first["message"]
    assert second["firstStep"] == 40


def test_a_suspended_job_holds_nothing_and_goes_on_with_another_gang(cluster, operator, submit):
    submit("resting")
    wait_for_step(cluster, "resting-1-0", 50)
    patch(cluster, suspend=True)
    cluster.kubectl("wait", "--for=condition=Suspended", "ftj/resting", "--timeout=90s")
    assert pods(cluster, "resting") == []
    rest = status(cluster, "resting")
    assert rest["phase"] == "Suspended"
    assert rest["attempts"][0]["outcome"] == "Suspended"
    assert "everything is saved" in rest["attempts"][0]["message"]
    patch(cluster, suspend=False, workers={"replicas": 1}, deepspeed={"zeroStage": 1})
    done = finished(cluster, "resting", 240)
    assert done["phase"] == "Succeeded", done["message"]
    first, second = done["attempts"]
    assert second["firstStep"] == first["lastStep"] >= 50
    assert second["workers"] == 1
    assert done["plan"]["zeroStage"] == 1
    assert done.get("restarts", 0) == 0
    assert done["usage"]["lostDeviceSeconds"] == 0


def patch(cluster, **spec) -> None:
    body = json.dumps({"spec": spec})
    cluster.kubectl("patch", "ftj", "resting", "--type=merge", "-p", body)
