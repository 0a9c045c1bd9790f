"""Event recorder: what repeats is counted, not repeated; a lost event never stops anything."""

import hashlib
import logging
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.base import API_VERSION, Object, format_time
from finetune_api.names import KIND
from finetune_operator.kube import TRANSIENT, ApiError, Requests
from finetune_operator.plan.events import Event
from finetune_operator.plan.observe import Job

_log = logging.getLogger("finetune.events")
_KEPT = 10_000


@dataclass
class Recorder:
    """Writes core/v1 Events."""

    kube: Requests
    _counts: dict[str, int] = field(default_factory=dict)

    async def record(self, job: Job, event: Event, now: datetime) -> None:
        """One event about a job."""
        digest = hashlib.sha256(f"{job.uid}{event}".encode()).hexdigest()[:16]
        name = f"{job.name}.{digest}"
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if len(self._counts) > _KEPT:
            self._counts.pop(next(iter(self._counts)))
        _log.info("%s/%s: %s %s", job.namespace, job.name, event.reason, event.message)
        collection = f"/api/v1/namespaces/{job.namespace}/events"
        try:
            try:
                await self.kube.create(collection, _body(job, event, name, now))
            except ApiError as error:
                if error.code != 409:
                    raise
                again = {"count": max(2, count), "lastTimestamp": format_time(now)}
                await self.kube.patch(f"{collection}/{name}", again)
        except (ApiError, *TRANSIENT) as error:
            _log.warning("event not recorded: %s", error)


def _body(job: Job, event: Event, name: str, now: datetime) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": job.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": job.name,
            "namespace": job.namespace,
            "uid": job.uid,
        },
        "type": event.kind,
        "reason": event.reason[:128],
        "message": event.message[:1024],
        "source": {"component": "finetune-operator"},
        "firstTimestamp": format_time(now),
        "lastTimestamp": format_time(now),
        "count": 1,
    }
