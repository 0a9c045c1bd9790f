"""A scripted kubelet, which changes the status of pods on the API server as a test requests."""

import json
import time
from datetime import UTC, datetime, timedelta

from finetune_api.base import Object, format_time
from finetune_local.cluster import Cluster
from tests.installed import pods
from tests.operator import podstatus


class Kubelet:
    """A kubelet that writes pod statuses as an administrator."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def bind(self, name: str, node: str) -> None:
        """Bind a pod to an existing node; the pod is charged for its devices from now on."""
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        binding = json.dumps({"metadata": {"name": name}, "target": target})
        path = f"/api/v1/namespaces/default/pods/{name}/binding"
        self._cluster.kubectl("create", "--raw", path, "-f", "-", stdin=binding)

    def run(self, name: str, address: str = "127.0.0.1") -> None:
        """Report that the pod is scheduled and its container runs."""
        self.write(name, podstatus.running(address))

    def end(self, name: str, code: int, message: str = "") -> None:
        """Report that its container has ended, and half a second later the final phase."""
        self.write(name, podstatus.terminated(code, message))
        time.sleep(0.5)
        self.write(name, {"phase": podstatus.final_phase(code)})

    def cannot_mount(self, name: str, message: str) -> None:
        """Report, in an event, that a volume of a pod is not mounted a minute after its binding."""
        since = format_time(datetime.now(UTC) - timedelta(seconds=60))
        waits = podstatus.condition("PodReadyToStartContainers", "False", since)
        bound = podstatus.condition("PodScheduled", "True", since)
        self.write(name, {"conditions": [bound, waits]})
        pod = json.loads(self._cluster.kubectl("get", "pod", name, "-o", "json"))["metadata"]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.mount", "namespace": pod["namespace"]},
            "involvedObject": {
                "kind": "Pod",
                "name": name,
                "namespace": pod["namespace"],
                "uid": pod["uid"],
            },
            "type": "Warning",
            "reason": "FailedMount",
            "message": message,
            "lastTimestamp": format_time(datetime.now(UTC)),
        }
        self._cluster.kubectl("create", "-f", "-", stdin=json.dumps(event))

    def silence(self, name: str) -> None:
        """Show, as the node lifecycle controller does, that the node of a pod does not answer."""
        pod = json.loads(self._cluster.kubectl("get", "pod", name, "-o", "json"))
        since = format_time(datetime.now(UTC))
        self.write(name, podstatus.on_silent_node(pod["status"], since))

    def write(self, name: str, status: Object) -> None:
        """Merge the fields into the status of a pod."""
        patch = json.dumps({"status": status})
        self._cluster.kubectl(
            "patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch
        )


def names(cluster: Cluster, job: str) -> set[str]:
    """Return the names of the pods of a job that are not being deleted."""
    found = pods(cluster, job)
    return {p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"]}
