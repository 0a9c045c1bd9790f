"""Images this node knows, and who a container runs as (pure)."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Image:
    """What an image brings: environment and user."""

    env: dict[str, str] = field(default_factory=dict)
    user: int = 65532


class RefusedError(Exception):
    """The pod asks for what this node cannot or will not do; it fails with these words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def load(path: Path) -> dict[str, Image]:
    """Read images.json."""
    return {name: Image(**entry) for name, entry in json.loads(path.read_text()).items()}


def identity(pod: Object, container: Object, image: Image) -> tuple[int, int]:
    """User and group of a container; Refused as the kubelet words it."""
    security = pod["spec"].get("securityContext", {}) | container.get("securityContext", {})
    user = security.get("runAsUser", image.user)
    if security.get("runAsNonRoot") and user == 0:
        raise RefusedError(
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root",
        )
    return user, security.get("runAsGroup", user)


def check(pod: Object) -> None:
    """Refuse pods that need what a process node does not have."""
    spec = pod["spec"]
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            raise RefusedError("UnsupportedPod", f"spec.{name} is not offered by this process node")
    if spec.get("restartPolicy") != "Never":
        raise RefusedError(
            "UnsupportedPod",
            f"spec.restartPolicy {spec.get('restartPolicy')} is not offered by this process node; "
            "it runs pods with Never",
        )
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        if container.get("restartPolicy"):
            raise RefusedError("UnsupportedPod", "restartable init containers are not offered")
        if container.get("securityContext", {}).get("privileged"):
            raise RefusedError("UnsupportedPod", "privileged containers are not offered")
        if not container.get("command"):
            raise RefusedError(
                "UnsupportedPod",
                f"container {container['name']} needs a command: this node runs processes and "
                "images have no entrypoint here",
            )
