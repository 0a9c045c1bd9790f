"""Jobs that cannot start: what `kubectl get` and `kubectl describe` show."""

import json
import time
from pathlib import Path

import pytest

from finetune_local.cluster import IMAGE, Cluster
from finetune_local.node.registration import DEVICE
from tests.e2e.conftest import manifest
from tests.installed import Operator, pods, status, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


def workers(**changes):
    base = {"replicas": 2, "deviceResource": DEVICE, "image": IMAGE}
    return {"workers": base | changes}


def template(**spec):
    return workers(template={"spec": spec})


def secret(name: str):
    return {"name": "trainer", "envFrom": [{"secretRef": {"name": name}}]}


# Name -> the job's changes, the reason in `kubectl get`, parts of the message.
WAITING = {
    "no-claim": (
        {"model": {"source": "pvc://nowhere/model"}},
        "ClaimMissing",
        ["PersistentVolumeClaim nowhere does not exist", "create it"],
    ),
    "no-secret": (
        template(containers=[secret("missing")]),
        "CreateContainerConfigError",
        ["missing"],
    ),
    "no-priority-class": (
        {"scheduling": {"priorityClassName": "urgent"}},
        "Forbidden",
        ["PriorityClass", "urgent"],
    ),
    "no-account": (template(serviceAccountName="robot"), "Forbidden", ["robot", "not found"]),
    "no-image": (workers(image="registry.example/missing:1"), "ImagePullBackOff", ["missing:1"]),
    "no-devices": (
        workers(devicesPerWorker=16) | {"training": {"maxSteps": 5, "sequenceLength": 128}},
        "Unschedulable",
        ["Insufficient", DEVICE],
    ),
    "no-node": (template(nodeSelector={"pool": "gpu"}), "Unschedulable", ["affinity/selector"]),
    "typo": (template(tolerationz=[]), "InvalidTemplate", ["tolerationz"]),
    "name-taken": ({}, "NameTaken", ["does not belong to this job", "give the job another name"]),
    "gated": (
        template(schedulingGates=[{"name": "example.com/queue"}]),
        "SchedulingGated",
        ["example.com/queue"],
    ),
}


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, workspace: Path, tmp_path_factory):
    """Create all jobs at once and run one operator for them."""
    cluster.kubectl("create", "service", "clusterip", "name-taken", "--tcp=80")
    running = Operator(cluster, tmp_path_factory.mktemp("unhappy") / "operator.log")
    running.start()
    try:
        for name, (changes, _, _) in WAITING.items():
            cluster.kubectl("create", "-f", "-", stdin=json.dumps(manifest(name, **changes)))
        yield running
    finally:
        running.kill()
        cluster.kubectl("delete", "ftj", "--wait=false", "--ignore-not-found", *WAITING)
        cluster.kubectl("delete", "service", "name-taken")


@pytest.mark.parametrize("name", WAITING)
def test_the_status_shows_what_a_job_waits_for(cluster: Cluster, submitted, name: str):
    _, reason, parts = WAITING[name]
    found = wait_for(
        f"{name} to have the reason {reason}",
        lambda: (now := status(cluster, name)).get("reason") == reason and now,
        240,
    )
    for part in parts:
        assert part in found["message"]
    assert reason in cluster.kubectl("get", "ftj", name)
    text = cluster.kubectl("describe", "ftj", name)
    events = text[text.index("Events:") :]
    assert reason in events
    assert parts[0] in events
    assert found.get("usage", {}).get("deviceSeconds", 0) == 0


def test_the_operator_neither_crashes_nor_writes_while_jobs_wait(cluster: Cluster, submitted):
    assert submitted.running
    assert "Traceback" not in submitted.log
    before = {name: version(cluster, name) for name in WAITING}
    time.sleep(15)  # longer than the interval between retries of refused requests
    assert {name: version(cluster, name) for name in WAITING} == before, (
        "a status was written although nothing changed"
    )


def version(cluster: Cluster, name: str) -> str:
    return cluster.kubectl("get", "ftj", name, "-o", "jsonpath={.metadata.resourceVersion}")


def test_a_job_continues_once_the_missing_secret_exists(cluster: Cluster, submitted):
    secret = ["secret", "generic", "missing", "--from-literal=TOKEN=x"]
    cluster.kubectl("create", *secret)
    wait_for(
        "the prepare pod to run",
        lambda: (
            any("containerStatuses" in p["status"] for p in pods(cluster, "no-secret"))
            and status(cluster, "no-secret").get("reason") != "CreateContainerConfigError"
        ),
    )
    cluster.kubectl("delete", "secret", "missing")
