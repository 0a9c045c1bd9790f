"""Runs the operator as its pod specifies: user, read-only root, and the token in a file."""

import json
import os
from collections.abc import Iterator

import pytest

from finetune_api.base import Object
from finetune_local.cluster import IMAGE, Cluster
from finetune_local.ports import free_port
from tests.chart.helm import Helm, find
from tests.installed import ready, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster with a node, which the control plane of the other tests does not have."""
    one = Cluster.up(f"test-pod-{os.getpid()}", tied=True)
    yield one
    one.down()


def test_the_operator_runs_as_its_pod_specifies(helm: Helm, cluster: Cluster):
    repository, tag = IMAGE.split(":")
    values = (f"--set=image.repository={repository}", f"--set=image.tag={tag}")
    objects = helm.objects(*values, namespace="default")
    deployment = find(objects, "Deployment")
    others = [item for item in objects if item is not deployment]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": others})
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    port = free_port()
    pod = _pod(deployment, _kubelet(cluster) | {"FINETUNE_HEALTH_PORT": str(port)})
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    try:
        assert "leading as operator_" in _leading(cluster, port)
        cluster.kubectl("delete", "pod", "operator", "--wait=false")
        wait_for("the lease is free", lambda: _holder(cluster) == "", 30)
    finally:
        cluster.kubectl("delete", "pod", "operator", "--ignore-not-found")
        cluster.kubectl("delete", "-f", "-", stdin=text)


def _leading(cluster: Cluster, port: int) -> str:
    try:
        found: str = wait_for("ready", lambda: _leads(port), 120)
    except AssertionError as error:
        for command in ("describe", "logs"):
            error.add_note(cluster.kubectl(command, "pod/operator"))
        raise
    return found


def _leads(port: int) -> str:
    state = ready(port)
    return state if "leading as" in state else ""


def _holder(cluster: Cluster) -> str:
    path = "-o=jsonpath={.spec.holderIdentity}"
    return cluster.kubectl("get", "lease", "finetune-operator", path)


def _kubelet(cluster: Cluster) -> dict[str, str]:
    """Return the variables that a kubelet sets; the address of the Service is not routed here."""
    port = str(cluster.settings.api_port)
    return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}


def _pod(deployment: Object, environment: dict[str, str]) -> Object:
    """Return the Deployment's pod without the probes, which a node of processes does not have."""
    template = deployment["spec"]["template"]
    spec = template["spec"] | {"restartPolicy": "Never"}
    (container,) = spec["containers"]
    for probe in ("livenessProbe", "readinessProbe"):
        del container[probe]
    values = {entry["name"]: entry["value"] for entry in container["env"]} | environment
    container["env"] = [{"name": name, "value": value} for name, value in values.items()]
    metadata = {"name": "operator", "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
