"""Whether a pod fits on this node, as the kubelet asks before it starts anything (pure)."""

from finetune_api.base import Object
from finetune_local.node.images import RefusedError
from finetune_local.node.register import DEVICE


def refusal(pod: Object, others: list[Object], devices: int) -> RefusedError | None:
    """Why a pod is not admitted beside the others that live; the scheduler may be bypassed."""
    asked, available = needed(pod), devices - sum(needed(other) for other in others)
    if asked <= available:
        return None
    return RefusedError(
        "UnexpectedAdmissionError",
        f"Allocate failed due to requested number of devices unavailable for {DEVICE}. "
        f"Requested: {asked}, Available: {max(available, 0)}, which is unexpected",
    )


def needed(pod: Object) -> int:
    """Devices a pod holds: what its containers hold together, or its greediest init container."""

    def devices(container: Object) -> int:
        return int(container.get("resources", {}).get("limits", {}).get(DEVICE, 0))

    main = sum(devices(container) for container in pod["spec"]["containers"])
    return max([main, *(devices(c) for c in pod["spec"].get("initContainers", []))])
