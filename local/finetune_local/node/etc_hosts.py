"""/etc/hosts of a pod: its own name, and the names that DNS has for headless Services."""

import os
from collections.abc import Iterator
from pathlib import Path

from finetune_api.base import Object

DOMAIN = "cluster.local"


def render(pod: Object, ip: str, pods: list[Object], services: list[Object]) -> str:
    """Return the text of the file, with the long and short names of the pod's own namespace.

    As on any cluster a pod has a name only if it has a hostname and its subdomain is a headless
    Service that selects it. Before the pod is ready the Service must also have
    publishNotReadyAddresses. A pure function.
    """
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", _own_line(pod, ip)]
    namespace = pod["metadata"]["namespace"]
    for service in services:
        if service["metadata"]["namespace"] == namespace and _is_headless(service):
            lines += _lines(service, [p for p in pods if p["metadata"]["namespace"] == namespace])
    return "\n".join(lines) + "\n"


def _own_line(pod: Object, ip: str) -> str:
    """Return the pod's own line. As in the kubelet it does not depend on Services."""
    host = pod["spec"].get("hostname") or pod["metadata"]["name"]
    subdomain, namespace = pod["spec"].get("subdomain"), pod["metadata"]["namespace"]
    long = [f"{host}.{subdomain}.{namespace}.svc.{DOMAIN}"] if subdomain else []
    return " ".join([ip, *long, host])


def _is_headless(service: Object) -> bool:
    return service["spec"].get("clusterIP") == "None" and bool(service["spec"].get("selector"))


def _lines(service: Object, pods: list[Object]) -> Iterator[str]:
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    for pod in pods:
        if not _selects(service, pod):
            continue
        spec = pod["spec"]
        hosts = [name]
        if spec.get("hostname") and spec.get("subdomain") == name:
            hosts.insert(0, f"{spec['hostname']}.{name}")
        for host in hosts:
            long = f"{host}.{namespace}.svc"
            names = (f"{long}.{DOMAIN}", long, f"{host}.{namespace}", host)
            yield " ".join([pod["status"]["podIP"], *names])


def _selects(service: Object, pod: Object) -> bool:
    labels, status = pod["metadata"].get("labels", {}), pod.get("status", {})
    if not service["spec"]["selector"].items() <= labels.items() or not status.get("podIP"):
        return False
    if status.get("phase") in ("Succeeded", "Failed"):
        return False
    ready = {c["type"]: c["status"] for c in status.get("conditions", [])}.get("Ready") == "True"
    return ready or bool(service["spec"].get("publishNotReadyAddresses"))


def write(path: Path, text: str) -> None:
    """Write in place: the file is bind-mounted and must keep its inode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
