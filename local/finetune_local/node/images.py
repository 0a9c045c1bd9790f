"""Images this node knows, who a container runs as, and what it does not offer (pure)."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node.environment import UnresolvedError

_NOT_OFFERED = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "volumeDevices")


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


def missing(pod: Object, known: dict[str, Image]) -> str | None:
    """Words about the first image that is not here."""
    for container in _containers(pod):
        if container["image"] not in known:
            return (
                f'Back-off pulling image "{container["image"]}": this node pulls nothing, '
                f"it knows {', '.join(sorted(known))}"
            )
    return None


def identity(pod: Object, container: Object, image: Image) -> tuple[int, int]:
    """User and group of a container; UnresolvedError as the kubelet words it.

    The group is fsGroup where nothing else is asked for: a process has one group here, and every
    file of the node's own belongs to it.
    """
    security = pod["spec"].get("securityContext", {}) | container.get("securityContext", {})
    user = security.get("runAsUser", image.user)
    if security.get("runAsNonRoot") and user == 0:
        who = "container's runAsUser breaks non-root policy"
        if "runAsUser" not in security:
            who = "container has runAsNonRoot and image will run as root"
        raise UnresolvedError(f"{who} (container: {container['name']})")
    return user, security.get("runAsGroup", security.get("fsGroup", user))


def check(pod: Object) -> None:
    """Refuse pods that need what a process node does not have."""
    spec = pod["spec"]
    for name in ("hostNetwork", "hostPID", "hostIPC", "activeDeadlineSeconds"):
        if spec.get(name):
            raise _unsupported(f"spec.{name} is not offered by this process node")
    if spec.get("restartPolicy") != "Never":
        raise _unsupported(
            f"spec.restartPolicy {spec.get('restartPolicy')} is not offered by this process node; "
            "it runs pods with Never"
        )
    _check_groups(pod)
    for container in _containers(pod):
        _check_container(container)


def _check_groups(pod: Object) -> None:
    """An unprivileged user can map one group, so a process has no more than that."""
    security = pod["spec"].get("securityContext", {})
    asked = set(security.get("supplementalGroups", []))
    for container in _containers(pod):
        if more := asked - {_asked_group(security, container)}:
            raise _unsupported(
                f"spec.securityContext.supplementalGroups {sorted(more)} are not offered by this "
                "process node: a container has one group here, runAsGroup, else fsGroup"
            )


def _asked_group(security: Object, container: Object) -> int | None:
    """The group that the pod asks for."""
    both = security | container.get("securityContext", {})
    group: int | None = both.get("runAsGroup", both.get("fsGroup"))
    return group


def _check_container(container: Object) -> None:
    name = container["name"]
    if container.get("restartPolicy"):
        raise _unsupported(f"container {name}: restartable init containers are not offered")
    if container.get("securityContext", {}).get("privileged"):
        raise _unsupported(f"container {name}: privileged containers are not offered")
    for part in _NOT_OFFERED:
        if container.get(part):
            raise _unsupported(f"container {name}: {part} is not offered by this process node")
    if any(port.get("hostPort") for port in container.get("ports", [])):
        raise _unsupported(f"container {name}: hostPort is not offered by this process node")
    if any(not entry["mountPath"].strip("/") for entry in container.get("volumeMounts", [])):
        raise _unsupported(f"container {name}: a volume at mountPath / would hide all programs")
    if not container.get("command"):
        raise _unsupported(
            f"container {name} needs a command: this node runs processes and "
            "images have no entrypoint here"
        )


def _containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def _unsupported(message: str) -> RefusedError:
    return RefusedError("UnsupportedPod", message)
