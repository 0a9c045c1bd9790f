"""Records events about pods as the kubelet does."""

import logging
from datetime import UTC, datetime
from uuid import uuid4

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError
from finetune_local.node.status import stamp

_log = logging.getLogger(__name__)


class Recorder:
    """Writes events. If one cannot be written, that is only logged."""

    def __init__(self, api: Api, node: str) -> None:
        self._api, self._node = api, node

    async def normal(self, pod: Object, reason: str, message: str) -> None:
        """Record a Normal event."""
        await self._write(pod, "Normal", reason, message)

    async def warning(self, pod: Object, reason: str, message: str) -> None:
        """Record a Warning event."""
        await self._write(pod, "Warning", reason, message)

    async def _write(self, pod: Object, kind: str, reason: str, message: str) -> None:
        metadata, now = pod["metadata"], stamp(datetime.now(UTC))
        namespace = metadata["namespace"]
        body = {
            "metadata": {"name": f"{metadata['name']}.{uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": namespace,
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": "kubelet", "host": self._node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.create(f"/api/v1/namespaces/{namespace}/events", body)
        except (ApiError, *TRANSIENT) as error:
            _log.warning("event %s of %s was not written: %s", reason, metadata["name"], error)
