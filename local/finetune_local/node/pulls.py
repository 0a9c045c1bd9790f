"""Slow pulls of images, which the annotation PULL_SECONDS of the node asks for.

The node has its images already. With the annotation, the first pods with an image wait as if it
were pulled; later ones start at once.
"""

import time
from collections.abc import Callable, Iterable

from finetune_api.base import Object
from finetune_client.api import Api

PULL_SECONDS = "local.finetune.dev/pull-seconds"


class Pulls:
    """The images that were pulled since the agent started, or are being pulled."""

    def __init__(self, api: Api, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._node, self._clock = api, node, clock
        self._present: dict[str, float] = {}  # image -> when it is there, by the clock

    async def seconds_left(self, images: Iterable[str]) -> float:
        """Return the seconds until all images are there; 0 if they are."""
        missing = set(images) - self._present.keys()
        if missing:
            there = self._clock() + await self._seconds()
            self._present |= dict.fromkeys(missing, there)
        latest = max((self._present[image] for image in images), default=0.0)
        return max(0.0, latest - self._clock())

    async def _seconds(self) -> float:
        node: Object = await self._api.get(f"/api/v1/nodes/{self._node}")
        return float(node["metadata"].get("annotations", {}).get(PULL_SECONDS, "0"))
