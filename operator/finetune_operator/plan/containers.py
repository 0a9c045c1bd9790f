"""What the operator adds to the containers and the volumes of a pod."""

from finetune_api import names
from finetune_api.base import Object
from finetune_operator.plan.template import over, trainer_of

_HARDENED: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_HARDENED_POD: Object = {
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
    "fsGroup": 65532,
    "fsGroupChangePolicy": "OnRootMismatch",
}
_HARDENED_TRAINER: Object = {"readOnlyRootFilesystem": True}
# The kernel drops SIGTERM if process 1 has no handler for it. A pod that is deleted while its image
# is pulled gets it before Python has started, and would wait for its peers until it is killed. So
# the kubelet first runs this, which waits while the runtime's own process is still process 1, or
# while process 1 does not catch signal 15 (bit 14 of SigCgt). It ends at once where a sandbox does
# not show that.
_HAS_NO_HANDLER = "grep -q -e '^Name:.runc' -e '^SigCgt:.*[012389ab]...$' /proc/1/status"
_WAIT_FOR_HANDLER = ["sh", "-c", f"while {_HAS_NO_HANDLER}; do sleep 0.1; done"]


def harden(spec: Object) -> None:
    """Set what the restricted Pod Security level requires of every container, also sidecars."""
    spec["securityContext"] = over(_HARDENED_POD, spec.get("securityContext", {}))
    for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
        own = _HARDENED_TRAINER if container.get("name") == names.CONTAINER else {}
        context = container.get("securityContext", {})
        container["securityContext"] = over(_HARDENED | own, context)


def trainer(spec: Object) -> Object:
    """Return the container of the trainer, which is added if the template has none."""
    found = trainer_of(spec)
    if found is None:
        found = {"name": names.CONTAINER}
        spec.setdefault("containers", []).insert(0, found)
    return found


def delay_stop(container: Object) -> None:
    """Have the kubelet send SIGTERM only once the trainer handles it.

    A hook of the template remains; it runs before SIGTERM, too.
    """
    container.setdefault("lifecycle", {}).setdefault(
        "preStop", {"exec": {"command": _WAIT_FOR_HANDLER}}
    )


def merge_env(entries: list[Object], own: list[Object]) -> list[Object]:
    """Return the template's variables and the operator's, which replace those of the same name."""
    own_names = {entry["name"] for entry in own}
    return [entry for entry in entries if entry.get("name") not in own_names] + own


def merge_ports(ports: list[Object], own: dict[str, int]) -> list[Object]:
    """Return the template's ports and the operator's."""
    taken = set(own.values())
    kept = [port for port in ports if port.get("containerPort") not in taken]
    return kept + [{"name": name, "containerPort": port} for name, port in own.items()]


def add_secrets(container: Object, secrets: list[str]) -> None:
    """Add each Secret to `envFrom` once, after the sources that the template names."""
    sources = list(container.get("envFrom", []))
    for name in dict.fromkeys(secrets):
        source = {"secretRef": {"name": name}}
        if source not in sources:
            sources.append(source)
    if sources:
        container["envFrom"] = sources


def mount_claims(spec: Object, container: Object, claims: dict[str, bool]) -> None:
    """Mount claims, given as their names -> whether they are only read."""
    for number, (claim, read_only) in enumerate(claims.items()):
        volume = {"claimName": claim} | ({"readOnly": True} if read_only else {})
        mount = {"mountPath": f"{names.CLAIMS_PATH}/{claim}", "readOnly": read_only}
        _mount(spec, container, f"claim-{number}", {"persistentVolumeClaim": volume}, mount)


def mount_shared_memory(spec: Object, container: Object) -> None:
    """Mount /dev/shm: NCCL fails with an obscure error in the 64 MB that runtimes give it."""
    if not _mounts(container, "/dev/shm"):
        memory = {"emptyDir": {"medium": "Memory"}}
        _mount(spec, container, "shared-memory", memory, {"mountPath": "/dev/shm"})


def mount_scratch(spec: Object, container: Object) -> None:
    """Mount a volume at /tmp for the caches of libraries: the root file system is read-only."""
    if not _mounts(container, "/tmp"):
        _mount(spec, container, "finetune-tmp", {"emptyDir": {}}, {"mountPath": "/tmp"})


def _mounts(container: Object, path: str) -> bool:
    return any(mount.get("mountPath") == path for mount in container.get("volumeMounts", []))


def _mount(spec: Object, container: Object, name: str, volume: Object, mount: Object) -> None:
    spec.setdefault("volumes", []).append({"name": name} | volume)
    container.setdefault("volumeMounts", []).append({"name": name} | mount)
