"""Unhappy surroundings: what a tired person reads in `kubectl get` and `describe` at 3 a.m."""

import json
import time
from pathlib import Path

import pytest

from finetune_local.cluster import Cluster
from tests.e2e.conftest import manifest
from tests.installed import Operator, pods, status, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

_DEVICE = "finetune.dev/cpu-device"
_IMAGE = "finetune-trainer:local"


def workers(**changes):
    base = {"replicas": 2, "deviceResource": _DEVICE, "image": _IMAGE}
    return {"workers": base | changes}


def template(**spec):
    return workers(template={"spec": spec})


def secret(name: str):
    return {"name": "trainer", "envFrom": [{"secretRef": {"name": name}}]}


# Name -> what the job asks for, the reason in `kubectl get`, words of the message.
WAITING = {
    "no-claim": (
        {"model": {"source": "pvc://nowhere/model"}},
        "ClaimMissing",
        ["PersistentVolumeClaim nowhere does not exist", "create it"],
    ),
    "no-secret": (
        template(containers=[secret("absent")]),
        "CreateContainerConfigError",
        ["absent"],
    ),
    "no-priority-class": (
        {"scheduling": {"priorityClassName": "urgent"}},
        "Forbidden",
        ["PriorityClass", "urgent"],
    ),
    "no-account": (template(serviceAccountName="robot"), "Forbidden", ["robot", "not found"]),
    "no-image": (workers(image="registry.example/absent:1"), "ImagePullBackOff", ["absent:1"]),
    "no-room": (
        workers(devicesPerWorker=16) | {"training": {"maxSteps": 5, "sequenceLength": 128}},
        "Unschedulable",
        ["Insufficient", _DEVICE],
    ),
    "no-node": (template(nodeSelector={"pool": "gpu"}), "Unschedulable", ["affinity/selector"]),
    "typo": (template(tolerationz=[]), "InvalidTemplate", ["tolerationz"]),
    "name-taken": ({}, "NameTaken", ["Service name-taken exists", "give the job another name"]),
    "gated": (
        template(schedulingGates=[{"name": "example.com/queue"}]),
        "SchedulingGated",
        ["example.com/queue"],
    ),
}


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, workspace: Path, tmp_path_factory):
    """All of them at once, and one operator that must stand it."""
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
def test_what_waits_says_what_it_waits_for(cluster: Cluster, submitted, name: str):
    _, reason, words = WAITING[name]
    found = wait_for(
        f"{name} to say {reason}",
        lambda: (now := status(cluster, name)).get("reason") == reason and now,
        240,
    )
    for word in words:
        assert word in found["message"]
    assert reason in cluster.kubectl("get", "ftj", name)
    text = cluster.kubectl("describe", "ftj", name)
    events = text[text.index("Events:") :]
    assert reason in events
    assert words[0] in events
    assert found.get("usage", {}).get("deviceSeconds", 0) == 0


def test_the_operator_stands_it_without_a_crash_loop(cluster: Cluster, submitted):
    assert submitted.running
    assert "Traceback" not in submitted.log
    before = {name: version(cluster, name) for name in WAITING}
    time.sleep(15)  # longer than the interval in which what was refused is tried again
    assert {name: version(cluster, name) for name in WAITING} == before, (
        "nothing is written at rest"
    )


def version(cluster: Cluster, name: str) -> str:
    return cluster.kubectl("get", "ftj", name, "-o", "jsonpath={.metadata.resourceVersion}")


def test_what_is_mended_goes_on(cluster: Cluster, submitted):
    secret = ["secret", "generic", "absent", "--from-literal=TOKEN=x"]
    cluster.kubectl("create", *secret)
    wait_for(
        "the prepare pod to run",
        lambda: (
            any("containerStatuses" in p["status"] for p in pods(cluster, "no-secret"))
            and status(cluster, "no-secret").get("reason") != "CreateContainerConfigError"
        ),
    )
    cluster.kubectl("delete", "secret", "absent")
