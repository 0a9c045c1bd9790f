"""Writes what a pod's containers do into the pod's status, and removes its object."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from finetune_api.base import Object
from finetune_local.node.api import TRANSIENT, Api, ApiError
from finetune_local.node.status import PodState, status

_RETRY = 1.0  # s
_log = logging.getLogger(__name__)


class Reporter:
    """Speaks to the API server for one pod; one that is away is waited for."""

    def __init__(self, api: Api, pod: Callable[[], Object], state: PodState) -> None:
        self._api, self._pod, self._state = api, pod, state
        self._lock = asyncio.Lock()  # a newer status is never overwritten by a slower, older one
        metadata = pod()["metadata"]
        self._uid = metadata["uid"]
        self._path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"

    async def report(self) -> None:
        """Write the status as it is now."""
        async with self._lock:
            while True:
                body = {"metadata": {"uid": self._uid}}
                body["status"] = status(self._pod(), self._state, datetime.now(UTC))
                try:
                    await self._api.patch(f"{self._path}/status", body)
                    return
                except ApiError as error:
                    if error.code in (404, 409):
                        return  # gone, or another pod of that name
                    _log.warning("status of %s: %s", self._path, error)
                    if error.code == 422:
                        return  # will be refused again
                except TRANSIENT as error:
                    _log.warning("status of %s: %r", self._path, error)
                await asyncio.sleep(_RETRY)

    async def remove(self) -> None:
        """Confirm to the API server that nothing of the pod is left."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}}
        while True:
            try:
                await self._api.delete(self._path, body)
                return
            except ApiError as error:
                if error.code in (404, 409):
                    return
                _log.warning("removal of %s: %s", self._path, error)
            except TRANSIENT as error:
                _log.warning("removal of %s: %r", self._path, error)
            await asyncio.sleep(_RETRY)
