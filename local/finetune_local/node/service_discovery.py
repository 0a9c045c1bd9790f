"""Watches all pods and Services of the cluster, from which DNS names of pods are derived."""

import asyncio
import logging
from collections.abc import Callable

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError

_log = logging.getLogger(__name__)


class ServiceDiscovery:
    """Keeps all pods and Services of the cluster.

    It has its own identity, because a node may read only its own pods. `changed` is called after
    each change.
    """

    def __init__(self, api: Api) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._api = api
        self._pods: dict[str, Object] = {}
        self._services: dict[str, Object] = {}

    @property
    def pods(self) -> list[Object]:
        """All pods of the cluster."""
        return list(self._pods.values())

    @property
    def services(self) -> list[Object]:
        """All Services of the cluster."""
        return list(self._services.values())

    async def run(self) -> None:
        """Watch both without end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch("/api/v1/pods", self._pods))
            group.create_task(self._watch("/api/v1/services", self._services))

    async def _watch(self, path: str, store: dict[str, Object]) -> None:
        while True:
            try:
                listed = await self._api.get(path)
                store.clear()
                store |= {item["metadata"]["uid"]: item for item in listed["items"]}
                self.changed()
                async for event in self._api.watch(path, listed["metadata"]["resourceVersion"]):
                    _apply(store, event)
                    self.changed()
            except (ApiError, *TRANSIENT) as error:
                _log.warning("watch of %s: %s", path, error)
                await asyncio.sleep(0.5)


def _apply(store: dict[str, Object], event: Object) -> None:
    item = event["object"]
    if event["type"] == "DELETED":
        store.pop(item["metadata"]["uid"], None)
    elif event["type"] in ("ADDED", "MODIFIED"):
        store[item["metadata"]["uid"]] = item
