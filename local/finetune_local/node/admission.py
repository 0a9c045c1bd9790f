"""Whether a pod can run on this node (pure functions)."""

from finetune_api.base import Object
from finetune_local.node.registration import DEVICE

_UNSUPPORTED_FIELDS = (
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "volumeDevices",
)
_HOOKS: tuple[dict[str, set[str]], ...] = ({}, {"preStop": {"exec"}})


class RefusedError(Exception):
    """The node cannot run the pod, which fails with this reason and message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_devices(pod: Object, others: list[Object], devices: int) -> RefusedError | None:
    """Return an error if the pod needs more devices than the node's other pods leave.

    The kubelet checks this too, because the scheduler may have been bypassed.
    """
    requested, available = needed(pod), devices - sum(needed(other) for other in others)
    if requested <= available:
        return None
    return RefusedError(
        "UnexpectedAdmissionError",
        f"Allocate failed due to requested number of devices unavailable for {DEVICE}. "
        f"Requested: {requested}, Available: {max(available, 0)}, which is unexpected",
    )


def needed(pod: Object) -> int:
    """Return the devices of a pod: the sum of its containers or, if larger, an init container's."""

    def devices(container: Object) -> int:
        return int(container.get("resources", {}).get("limits", {}).get(DEVICE, 0))

    main = sum(devices(container) for container in pod["spec"]["containers"])
    return max([main, *(devices(c) for c in pod["spec"].get("initContainers", []))])


def check_supported(pod: Object) -> None:
    """Raise RefusedError if the pod needs what a process node does not offer."""
    spec = pod["spec"]
    for name in ("hostNetwork", "hostPID", "hostIPC", "activeDeadlineSeconds"):
        if spec.get(name):
            raise _unsupported(f"spec.{name} is not offered by this process node")
    _check_groups(pod)
    for container in all_containers(pod):
        _check_container(container)


def all_containers(pod: Object) -> list[Object]:
    """Return the specifications of all containers, init containers first."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def _check_groups(pod: Object) -> None:
    # An unprivileged user can map only one group, so a process has only one.
    security = pod["spec"].get("securityContext", {})
    requested = set(security.get("supplementalGroups", []))
    for container in all_containers(pod):
        if more := requested - {_requested_group(security, container)}:
            raise _unsupported(
                f"spec.securityContext.supplementalGroups {sorted(more)} are not offered by this "
                "process node: a container has one group here, runAsGroup or else fsGroup"
            )


def _requested_group(security: Object, container: Object) -> int | None:
    both = security | container.get("securityContext", {})
    group: int | None = both.get("runAsGroup", both.get("fsGroup"))
    return group


def _check_container(container: Object) -> None:
    name = container["name"]
    if container.get("restartPolicy"):
        raise _unsupported(f"container {name}: restartable init containers are not offered")
    if container.get("securityContext", {}).get("privileged"):
        raise _unsupported(f"container {name}: privileged containers are not offered")
    for field in _UNSUPPORTED_FIELDS:
        if container.get(field):
            raise _unsupported(f"container {name}: {field} is not offered by this process node")
    if {hook: set(action) for hook, action in container.get("lifecycle", {}).items()} not in _HOOKS:
        raise _unsupported(
            f"container {name}: of lifecycle only preStop.exec is offered by this process node"
        )
    if any(port.get("hostPort") for port in container.get("ports", [])):
        raise _unsupported(f"container {name}: hostPort is not offered by this process node")
    if any(not entry["mountPath"].strip("/") for entry in container.get("volumeMounts", [])):
        raise _unsupported(f"container {name}: a volume at mountPath / would hide all programs")
    if not container.get("command"):
        raise _unsupported(
            f"container {name} needs a command: this node runs processes, and "
            "images have no entrypoint here"
        )


def _unsupported(message: str) -> RefusedError:
    return RefusedError("UnsupportedPod", message)
