"""Pods that need what the node does not offer are refused with a message."""

import pytest

from finetune_local.node.admission import RefusedError, check_devices, check_supported
from finetune_local.node.environment import UnresolvedError
from finetune_local.node.images import Image, identity
from finetune_local.node.registration import DEVICE
from tests.installed import wait_for
from tests.local.pods import container, create, ended, pod, waiting


def pod_with_devices(name: str, *counts: int, init: int = 0):
    def limited(label: str, count: int):
        return container("sleep 1000", label, resources={"limits": {DEVICE: str(count)}})

    item = pod(name, *(limited(f"c{i}", count) for i, count in enumerate(counts)))
    return item | {"spec": item["spec"] | {"initContainers": [limited("init", init)]}}


REFUSED = {
    "activeDeadlineSeconds": pod("a", container("true"), activeDeadlineSeconds=5),
    "hostNetwork": pod("a", container("true"), hostNetwork=True),
    "livenessProbe": pod("a", container("true", livenessProbe={"exec": {"command": ["true"]}})),
    "readinessProbe": pod("a", container("true", readinessProbe={"tcpSocket": {"port": 1}})),
    "lifecycle": pod("a", container("true", lifecycle={"preStop": {"sleep": {"seconds": 1}}})),
    "of lifecycle only preStop.exec": pod(
        "a", container("true", lifecycle={"postStart": {"exec": {"command": ["true"]}}})
    ),
    "hostPort": pod("a", container("true", ports=[{"containerPort": 1, "hostPort": 1}])),
    "privileged": pod("a", container("true", securityContext={"privileged": True})),
    "mountPath /": pod("a", container("true", volumeMounts=[{"name": "v", "mountPath": "//"}])),
    "supplementalGroups": pod(
        "a", container("true"), securityContext={"supplementalGroups": [7], "fsGroup": 8}
    ),
    "needs a command": pod("a", {"name": "main", "image": "x"}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_unsupported_fields_are_refused(message):
    with pytest.raises(RefusedError, match=message):
        check_supported(REFUSED[message])


def test_the_security_context_of_operator_pods_is_supported():
    security = {"runAsNonRoot": True, "fsGroup": 65532, "supplementalGroups": [65532]}
    check_supported(pod("a", container("true"), securityContext=security))


IDENTITIES = {
    "user of the image": ({}, {}, (65532, 65532)),
    "user and group of the pod": ({"runAsUser": 5, "runAsGroup": 6}, {}, (5, 6)),
    "user of the container": ({"runAsUser": 5}, {"runAsUser": 7, "runAsNonRoot": True}, (7, 7)),
    "fsGroup of the pod": ({"runAsUser": 5, "fsGroup": 8}, {}, (5, 8)),
    "root in spite of runAsNonRoot": (
        {"runAsNonRoot": True},
        {"runAsUser": 0},
        "breaks non-root policy",
    ),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_user_and_group_of_a_container(case):
    of_pod, own, expected = IDENTITIES[case]
    item = pod("a", container("true", securityContext=own), securityContext=of_pod)
    if isinstance(expected, str):
        with pytest.raises(UnresolvedError, match=expected):
            identity(item, item["spec"]["containers"][0], Image())
    else:
        assert identity(item, item["spec"]["containers"][0], Image()) == expected


def test_devices_are_summed_over_the_pods_of_the_node():
    assert (
        check_devices(
            pod_with_devices("a", 1, 1),
            [pod_with_devices("b", 1), pod_with_devices("c", 0, init=1)],
            4,
        )
        is None
    )
    error = check_devices(
        pod_with_devices("a", 1, 1), [pod_with_devices("b", 2), pod_with_devices("c", 1)], 4
    )
    assert error.reason == "UnexpectedAdmissionError"
    assert "Requested: 2, Available: 1" in str(error)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_pod_that_bypasses_the_scheduler_fails_without_devices(cluster):
    item = pod_with_devices("greedy-bypass", 5)
    item["spec"]["nodeName"] = f"{cluster.name}-node-1"
    create(cluster, item)
    status = ended(cluster, "greedy-bypass")
    assert (status["phase"], status["reason"]) == ("Failed", "UnexpectedAdmissionError")
    assert "Requested: 5, Available: 4" in status["message"]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_root_user_in_spite_of_run_as_non_root_waits_with_a_message(cluster):
    security = {"runAsNonRoot": True, "runAsUser": 0}
    create(cluster, pod("rooted", container("id", securityContext=security)))
    wait_for("the message", lambda: waiting(cluster, "rooted")[1])
    reason, message = waiting(cluster, "rooted")
    assert reason == "CreateContainerConfigError"
    assert "breaks non-root policy" in message
    cluster.kubectl("delete", "pod", "rooted")
