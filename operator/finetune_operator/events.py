"""The event recorder: a bounded queue of core/v1 Events that a background task sends.

Events are for people. Reconciling never waits for one and never fails because of one: what does not
fit into the queue is dropped, and what the API server refuses is logged. An event that repeats
while it waits, or after it was sent, increases the count of the first one.
"""

import asyncio
import hashlib
import logging
from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api.base import API_VERSION, Object, format_time
from finetune_api.names import KIND
from finetune_client.errors import TRANSIENT, ApiError
from finetune_operator.execute import Requests
from finetune_operator.lease import LeaseLostError
from finetune_operator.plan.events import Event
from finetune_operator.plan.observe import Job

_log = logging.getLogger("finetune.events")
CAPACITY = 5_000  # events that wait; about 2 kB each
_COUNTED = 10_000  # events of the past whose repetitions are counted


@dataclass(frozen=True)
class _Pending:
    """An event that waits to be sent. It does not refer to the job, which can be large."""

    collection: str
    body: Object  # without the fields that change when the event repeats
    last: datetime
    count: int  # repetitions so far, also of those that were sent


@dataclass
class Recorder:
    """Queues events and sends those of a namespace in the order in which they were recorded.

    The namespaces are served in rotation, and none fills more than its share of the queue.
    """

    api: Requests
    capacity: int = CAPACITY
    share: int = CAPACITY // 4  # of one namespace
    dropped: int = 0  # since the queue was last empty
    _pending: dict[str, _Pending] = field(default_factory=dict)  # by name
    _names: dict[str, dict[str, None]] = field(default_factory=dict)  # by namespace, oldest first
    _counts: dict[str, int] = field(default_factory=dict)
    _recorded: asyncio.Event = field(default_factory=asyncio.Event)

    def record(self, job: Job, event: Event, now: datetime) -> None:
        """Queue an event about a job."""
        _log.info("%s/%s: %s %s", job.namespace, job.name, event.reason, event.message)
        digest = hashlib.sha256(f"{job.uid}{event}".encode()).hexdigest()[:16]
        name = f"{job.name}.{digest}"
        waiting = self._pending.get(name)
        own = self._names.get(job.namespace, {})
        full = len(self._pending) >= self.capacity or len(own) >= self.share
        if waiting is None and full:
            self.dropped += 1
            if self.dropped == 1:
                count = len(self._pending)
                _log.warning("%d events wait to be sent; new ones are dropped", count)
            return
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if len(self._counts) > _COUNTED:
            self._counts.pop(next(iter(self._counts)))
        if waiting:
            self._pending[name] = replace(waiting, last=now, count=count)
        else:
            self._pending[name] = _Pending(
                _collection(job), _body(name, job, event, now), now, count
            )
            self._names.setdefault(job.namespace, {})[name] = None
        self._recorded.set()

    async def run(self) -> None:
        """Send events until cancelled."""
        while True:
            await self._recorded.wait()
            self._recorded.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send all events that wait; one whose sending is cancelled remains in the queue."""
        while self._pending:
            namespace, names = next(iter(self._names.items()))
            name = next(iter(names))
            pending = self._pending[name]
            try:
                await self._send(name, pending)
            except (ApiError, *TRANSIENT) as error:
                _log.warning("event not recorded: %s", error)
            except LeaseLostError:
                raise
            except Exception:
                _log.exception("event not recorded")
            del self._names[namespace]
            if self._pending[name] is pending:  # It was not repeated meanwhile.
                del self._pending[name], names[name]
            if names:
                self._names[namespace] = names  # behind the other namespaces
        if self.dropped:
            _log.warning("%d events were dropped", self.dropped)
            self.dropped = 0

    async def _send(self, name: str, pending: _Pending) -> None:
        last = {"lastTimestamp": format_time(pending.last)}
        try:
            body = pending.body | last | {"count": pending.count}
            await self.api.create(pending.collection, body)
        except ApiError as error:
            if error.code != 409:
                raise
            again = last | {"count": max(2, pending.count)}
            await self.api.patch(f"{pending.collection}/{name}", again)


def _collection(job: Job) -> str:
    return f"/api/v1/namespaces/{job.namespace}/events"


def _body(name: str, job: Job, event: Event, now: datetime) -> Object:
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
    }
