"""Writes the status of a pod and removes its object."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError
from finetune_local.node.status import PodState, status

_RETRY = 1.0  # s
_log = logging.getLogger(__name__)


class StatusWriter:
    """Writes to the API server for one pod, retrying while the server is down."""

    def __init__(self, api: Api, pod: Callable[[], Object], state: PodState) -> None:
        self._api, self._pod, self._state = api, pod, state
        self._lock = asyncio.Lock()  # so that a delayed write cannot overwrite a newer status
        metadata = pod()["metadata"]
        self._uid = metadata["uid"]
        self._path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"

    async def write(self) -> None:
        """Write the current status."""
        async with self._lock:
            while True:
                body = {"metadata": {"uid": self._uid}}
                body["status"] = status(self._pod(), self._state, datetime.now(UTC))
                try:
                    await self._api.patch(f"{self._path}/status", body)
                    return
                except ApiError as error:
                    if error.code in (404, 409):
                        return  # the pod is gone, or another pod has its name
                    _log.warning("status of %s: %s", self._path, error)
                    if error.code == 422:
                        return  # a retry would be refused too
                except TRANSIENT as error:
                    _log.warning("status of %s: %r", self._path, error)
                await asyncio.sleep(_RETRY)

    async def remove(self) -> None:
        """Remove the object of the pod, which confirms that nothing of it still runs."""
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
