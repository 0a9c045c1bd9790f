"""Jobs succeed despite preemption, lost nodes, restarts and hangs, each of which really happens."""

import json
import os
import signal

import pytest

from finetune_local.cluster import ClusterError
from tests.e2e.processes import rank_process, wait_for_step
from tests.installed import finished, pods, status, wait_for
from tests.tools import components

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

_CLASS = """
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: urgent}
value: 1000
"""
_URGENT_POD = """
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


def test_a_preempted_gang_saves_waits_for_devices_and_loses_no_step(cluster, operator, submit):
    submit("preempted")
    wait_for_step(cluster, "preempted-1-0", 50)
    cluster.kubectl("apply", "-f", "-", stdin=_CLASS)
    for name in ("urgent-1", "urgent-2"):  # both nodes
        cluster.kubectl("create", "-f", "-", stdin=_URGENT_POD.format(name=name))
    queued = wait_for(
        "the second attempt to wait for devices",
        lambda: (now := status(cluster, "preempted")).get("reason") == "Unschedulable" and now,
    )
    assert queued["attempt"] == 2
    assert "Insufficient finetune.dev/cpu-device" in queued["message"]
    done = finished(cluster, "preempted", 240)
    cluster.kubectl("delete", "pod", "urgent-1", "urgent-2")
    assert done["phase"] == "Succeeded", done["message"]
    assert (done["restarts"], done.get("countedRestarts", 0)) == (1, 0)
    first, second = done["attempts"]
    assert first["outcome"] == "Preempted"
    assert second["firstStep"] == first["lastStep"] > 50
    assert done["usage"]["lostDeviceSeconds"] == 0
    assert not done["usage"]["estimated"]


def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(cluster, operator, submit):
    # The shortest toleration with which a cluster evicts the pods of a node that does not respond.
    unreachable = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "tolerationSeconds": 0,
    }
    workers = {
        "replicas": 2,
        "deviceResource": "finetune.dev/cpu-device",
        "template": {"spec": {"tolerations": [unreachable | {"effect": "NoExecute"}]}},
    }
    submit("nodeless", workers=workers, runPolicy={"terminationGracePeriodSeconds": 5})
    wait_for_step(cluster, "nodeless-1-0", 60)
    node = node_of(cluster, "nodeless-1-1")
    assert node != node_of(cluster, "nodeless-1-0")
    components.kill(cluster, node, stay_down=True)
    try:
        done = finished(cluster, "nodeless", 400)
    finally:
        components.start(cluster, node)
    assert done["phase"] == "Succeeded", done["message"]
    first, second = done["attempts"]
    assert (first["outcome"], first["counted"]) == ("Failed", True)
    assert first["reason"] in ("PeerLost", "WorkerLost")
    assert first["estimated"]  # the end of the pod on that node was not observed
    assert second["firstStep"] == 40
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=90s")


def test_a_restart_of_the_control_plane_does_not_affect_the_gang(cluster, operator, submit):
    submit("steady")
    wait_for_step(cluster, "steady-1-0", 20)
    components.kill(cluster, "kube-apiserver")
    wait_for("progress after the API server is back", lambda: has_step(cluster, 60), 240)
    components.kill(cluster, "etcd")
    done = wait_for("the job to succeed", lambda: ended(cluster, "steady"), 240)
    assert done["phase"] == "Succeeded", done["message"]
    assert (done.get("restarts", 0), done["attempt"]) == (0, 1)
    assert operator.running


def has_step(cluster, step: int) -> bool:
    """Return whether the status shows the step; False while the API server is down."""
    try:
        return status(cluster, "steady").get("progress", {}).get("step", 0) >= step
    except ClusterError:
        return False


def ended(cluster, name: str):
    """Return the status if the job has ended; None otherwise or while the API server is down."""
    try:
        found = status(cluster, name)
    except ClusterError:
        return None
    return found if found.get("phase") in ("Succeeded", "Failed") else None


def test_a_frozen_rank_is_reported_as_a_hang_and_the_gang_restarts(cluster, operator, submit):
    submit("frozen", runPolicy={"progressDeadlineSeconds": 15})
    wait_for_step(cluster, "frozen-1-0", 60)
    os.kill(rank_process("frozen", 1), signal.SIGSTOP)
    done = finished(cluster, "frozen", 240)
    assert done["phase"] == "Succeeded", done["message"]
    first, second = done["attempts"]
    assert (first["outcome"], first["reason"], first["exitCode"]) == ("Failed", "Hang", 89)
    assert "progressDeadlineSeconds" in first["message"]
    assert second["firstStep"] == 40


def test_a_suspended_job_has_no_pods_and_resumes_with_a_different_gang(cluster, operator, submit):
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
