"""Creates pods for tests of the node and reads their state."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.base import Object
from finetune_local.build import binaries
from finetune_local.cluster import IMAGE, Cluster, ClusterError
from finetune_operator import informer
from tests.installed import ask, wait_for


def container(script: str, name: str = "main", **changes: Any) -> Object:
    """Return a container that runs a shell script."""
    return {"name": name, "image": IMAGE, "command": ["sh", "-c", script]} | changes


def pod(name: str, *containers: Object, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "containers": list(containers)} | spec,
    }


def create(cluster: Cluster, *items: Object) -> None:
    body = {"apiVersion": "v1", "kind": "List", "items": list(items)}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(body))


def get(cluster: Cluster, name: str) -> Object:
    found: Object = ask(cluster, f"{informer.path('default')}/{name}")
    return found


def ended(cluster: Cluster, name: str, seconds: float = 30) -> Object:
    """Wait until a pod has ended and return its status."""

    def final_status() -> Object | None:
        status: Object = get(cluster, name)["status"]
        return status if status["phase"] in ("Succeeded", "Failed") else None

    status: Object = wait_for(f"{name} to end", final_status, seconds)
    return status


def run(cluster: Cluster, item: Object) -> str:
    """Create a pod, wait until it has ended and return the log of its first container."""
    create(cluster, item)
    name = item["metadata"]["name"]
    status = ended(cluster, name)
    first = item["spec"]["containers"][0]["name"]
    assert status["containerStatuses"][0]["state"].get("terminated"), status
    return cluster.kubectl("logs", name, "-c", first)


def exits(status: Object, kind: str = "containerStatuses") -> dict[str, Object]:
    """Return the terminated state of each container, by name."""
    return {s["name"]: s["state"].get("terminated") for s in status[kind]}


def logs(cluster: Cluster, name: str, *options: str) -> str:
    """Return the log of a pod; empty while it has none."""
    try:
        return cluster.kubectl("logs", name, *options)
    except ClusterError:
        return ""


def waiting(cluster: Cluster, name: str) -> tuple[str, str]:
    """Return the reason and message of the first container that waits."""
    for status in get(cluster, name)["status"].get("containerStatuses", []):
        if state := status["state"].get("waiting"):
            return state["reason"], state.get("message", "")
    return "", ""


@contextmanager
def followed(cluster: Cluster, name: str, first: str) -> Iterator[Callable[[], str]]:
    """Run `kubectl logs -f` and read its first line; yield a function that returns the rest."""
    program = [str(binaries() / "kubectl"), "--kubeconfig", str(cluster.kubeconfig)]
    command = [*program, "logs", "-f", name]
    # Without a buffer, because data buffered with the first line would be lost.
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().decode() == first + "\n"
            yield lambda: process.communicate(timeout=15)[0].decode()
        finally:
            process.kill()


def with_finalizer(item: Object) -> Object:
    """Add a finalizer, so that the last status of a deleted pod can be read."""
    item["metadata"]["finalizers"] = ["finetune.dev/test"]
    return item


def remove_finalizer(cluster: Cluster, name: str) -> None:
    patch = '{"metadata":{"finalizers":null}}'
    cluster.kubectl("patch", "pod", name, "--type=merge", "-p", patch)


def processes_with(marker: str) -> list[int]:
    """Return the processes of this machine whose environment contains the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
