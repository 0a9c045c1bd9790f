"""Reads the events of pods that are slow to start (plan/slow_pods.py), and keeps what they say.

Events are for people, so nothing depends on them: without the right to read them, or without an
answer, messages say less.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from finetune_api import reasons
from finetune_api.base import Object
from finetune_client.errors import TRANSIENT, ApiError
from finetune_operator.plan.nodes import clock
from finetune_operator.plan.observe import Pod
from finetune_operator.plan.slow_pods import Notice

_log = logging.getLogger("finetune.pod_events")
_FIRST, _LONGEST = 30.0, 300.0  # s between two reads of the events of one pod
_PODS = 3  # of a gang whose events are read; the others usually wait for the same
_EVENTS = 50  # of a pod that are read
_KEPT = 1_000  # pods whose notices are kept
# Reasons of events about the search for a node.
_BEFORE_BINDING = ("Scheduled", "FailedScheduling", "TriggeredScaleUp", "NotTriggerScaleUp")


class Requests(Protocol):
    """The request that reading makes."""

    async def get(self, path: str, **query: str) -> Object:
        """GET an object, or one page of a collection."""


@dataclass(frozen=True)
class _Read:
    at: datetime
    wait: float  # s until the next read
    notice: Notice | None


@dataclass
class PodEvents:
    """The newest events of slow pods, by pod uid."""

    api: Requests
    _reads: dict[str, _Read] = field(default_factory=dict)
    _failed: bool = False  # logged once, so that a missing right does not fill the log

    @property
    def known(self) -> Mapping[str, Notice]:
        """What the events of each pod say about why it does not run."""
        return {uid: read.notice for uid, read in self._reads.items() if read.notice}

    async def read(self, pods: Iterable[Pod], now: datetime) -> None:
        """Read the events of the first of these pods, unless they were read a short time ago."""
        for pod in list(pods)[:_PODS]:
            before = self._reads.pop(pod.uid, None)
            if before is None:
                self._reads[pod.uid] = _Read(now, _FIRST, await self._fetch(pod))
            elif (now - before.at).total_seconds() >= before.wait:
                wait = min(_LONGEST, 2 * before.wait)
                self._reads[pod.uid] = _Read(now, wait, await self._fetch(pod))
            else:
                self._reads[pod.uid] = before
        while len(self._reads) > _KEPT:
            del self._reads[next(iter(self._reads))]

    async def _fetch(self, pod: Pod) -> Notice | None:
        path = f"/api/v1/namespaces/{pod.namespace}/events"
        selector = f"involvedObject.uid={pod.uid}"
        try:
            page = await self.api.get(path, fieldSelector=selector, limit=str(_EVENTS))
        except (ApiError, *TRANSIENT) as error:
            if not self._failed:
                self._failed = True
                _log.warning("events of pods cannot be read, so messages say less: %s", error)
            return None
        return notice_of(page.get("items", []))


def notice_of(events: Iterable[Object]) -> Notice | None:
    """Return what the newest event of a pod says about why it does not run, or None."""
    found = [e for e in events if _is_readable(e) and e["reason"] not in _BEFORE_BINDING]
    if not found:
        return None
    newest = max(found, key=_time)
    message = " ".join(newest["message"].split())[:512]
    if newest["reason"] == reasons.PULLING:
        return Notice(reasons.PULLING, f"{message} since {clock(_time(newest))}")
    return Notice(newest["reason"] if newest.get("type") == "Warning" else "", message)


def _is_readable(event: Object) -> bool:
    return isinstance(event.get("reason"), str) and isinstance(event.get("message"), str)


def _time(event: Object) -> datetime:
    """Return when an event last happened. Clients fill different fields; the others may be null."""
    series = event.get("series") or {}
    times = [series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime")]
    known = [datetime.fromisoformat(time).astimezone(UTC) for time in times if time]
    return max(known, default=datetime.min.replace(tzinfo=UTC))
