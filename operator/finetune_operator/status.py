"""When and how a new status is written: one merge patch, only when something real changed."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.usage import PROOF_INTERVAL
from finetune_operator.queue import Key

Object = dict[str, Any]
_PER_SECOND = 20.0  # writes of progress, over all jobs
# Computed when written, never a reason to write.
_DERIVED = ("message", "display", "usage")
# What changes by the dozen while a gang starts and trains.
_COUNTS = ("progress", "workers")
_ATTEMPT_VOLATILE = (
    "deviceSeconds",
    "accountedUntil",
    "productiveDeviceSeconds",
    "lostDeviceSeconds",
    "lastStep",
)


class Urgency(IntEnum):
    """How soon a change must be seen."""

    NONE = 0
    USAGE = 1
    PROGRESS = 2
    NOW = 3


def urgency(old: FineTuneJobStatus, new: FineTuneJobStatus) -> Urgency:
    """What kind of change this is."""
    if old == new:
        return Urgency.NONE
    before, after = old.to_dict(), new.to_dict()
    if before == after:
        return Urgency.NONE
    if _facts(before) != _facts(after):
        return Urgency.NOW
    if any(before.get(name) != after.get(name) for name in (*_COUNTS, "conditions")):
        return Urgency.PROGRESS
    return Urgency.USAGE if before.get("usage") != after.get("usage") else Urgency.NONE


def _facts(status: Object) -> Object:
    """What must be seen at once; how a condition words it ("3 of 10 workers run") can wait."""
    kept = {k: v for k, v in status.items() if k not in _DERIVED + _COUNTS}
    kept["conditions"] = [
        {k: v for k, v in condition.items() if k != "message"}
        for condition in status.get("conditions", [])
    ]
    if status.get("phase") not in ("Running", "Starting"):
        kept["message"] = status.get("message")  # no progress in it
    attempts = kept.get("attempts", [])
    kept["attempts"] = [
        {k: v for k, v in attempt.items() if k not in _ATTEMPT_VOLATILE} for attempt in attempts
    ]
    return kept


def merge_patch(old: Any, new: Any) -> Any:
    """RFC 7386: what turns `old` into `new`; lists are replaced as a whole."""
    changes = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            changes[key] = value
        elif isinstance(value, dict) and isinstance(old[key], dict):
            if inner := merge_patch(old[key], value):
                changes[key] = inner
        elif value != old[key]:
            changes[key] = value
    return changes


@dataclass
class Throttle:
    """Spreads the writes that can wait; times are of the monotonic clock, in seconds."""

    interval: float
    _last: dict[Key, float] = field(default_factory=dict)
    _next: float = 0.0

    def wait(self, key: Key, kind: Urgency, now: float) -> float:
        """Seconds until this write may happen; 0 takes the slot."""
        last = self._last.get(key, float("-inf"))
        interval = {Urgency.NOW: 0.0, Urgency.PROGRESS: self.interval}.get(kind, PROOF_INTERVAL)
        wait = last + interval - now
        if kind is not Urgency.NOW:
            wait = max(wait, self._next - now)
        if wait > 0:
            return wait
        self._last[key] = now
        if kind is not Urgency.NOW:
            self._next = max(self._next, now) + 1 / _PER_SECOND
        return 0.0

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._last.pop(key, None)
