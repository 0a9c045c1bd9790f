"""The images that this node knows, and the user and group that a container runs as."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node.admission import all_containers
from finetune_local.node.environment import UnresolvedError


@dataclass(frozen=True)
class Image:
    """The environment and the user of an image."""

    env: dict[str, str] = field(default_factory=dict)
    user: int = 65532


def load(path: Path) -> dict[str, Image]:
    """Read images.json: the images by name."""
    return {name: Image(**entry) for name, entry in json.loads(path.read_text()).items()}


def missing(pod: Object, known: dict[str, Image]) -> str | None:
    """Return a message about the pod's first image that this node does not know, or None."""
    for container in all_containers(pod):
        if container["image"] not in known:
            return (
                f'Back-off pulling image "{container["image"]}": this node pulls no images; '
                f"it knows {', '.join(sorted(known))}"
            )
    return None


def identity(pod: Object, container: Object, image: Image) -> tuple[int, int]:
    """Return the user and the group of a container.

    Raises UnresolvedError with the kubelet's message if runAsNonRoot forbids the user. If
    runAsGroup is not set, the group is fsGroup: a process has only one group here, and all files of
    the node belong to it.
    """
    security = pod["spec"].get("securityContext", {}) | container.get("securityContext", {})
    user = security.get("runAsUser", image.user)
    if security.get("runAsNonRoot") and user == 0:
        cause = "container's runAsUser breaks non-root policy"
        if "runAsUser" not in security:
            cause = "container has runAsNonRoot and image will run as root"
        raise UnresolvedError(f"{cause} (container: {container['name']})")
    return user, security.get("runAsGroup", security.get("fsGroup", user))
