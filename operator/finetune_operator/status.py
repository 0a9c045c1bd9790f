"""When and how a new status is written: one merge patch, only when something real changed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from finetune_api.base import Message
from finetune_api.status import Attempt, Condition, FineTuneJobStatus
from finetune_operator.plan.usage import PROOF_INTERVAL
from finetune_operator.queue import Key

_PER_SECOND = 20.0  # writes of progress, over all jobs
# Computed when written, never a reason to write.
_DERIVED = {"message", "display", "usage"}
# What changes by the dozen while a gang starts and trains.
_COUNTS = {"progress", "workers"}
# Written with the next change of anything else.
_ATTEMPT_VOLATILE = (
    "device_seconds",
    "accounted_until",
    "productive_device_seconds",
    "lost_device_seconds",
    "last_step",
)
# Compared apart: only a part of them counts.
_PARTIAL = {"conditions", "attempts"}
_FACTS = FineTuneJobStatus.model_fields.keys() - _DERIVED - _COUNTS - _PARTIAL
_ATTEMPT_FACTS = Attempt.model_fields.keys() - set(_ATTEMPT_VOLATILE)
_CONDITION_FACTS = Condition.model_fields.keys() - {"message"}


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
    if not _same_facts(old, new):
        return Urgency.NOW
    if old.conditions != new.conditions or not _same(old, new, _COUNTS):
        return Urgency.PROGRESS
    return Urgency.USAGE if old.usage != new.usage else Urgency.NONE


def _same_facts(old: FineTuneJobStatus, new: FineTuneJobStatus) -> bool:
    """What must be seen at once; how a condition words it ("3 of 10 workers run") can wait."""
    waits = new.phase not in ("Running", "Starting")  # there is no progress in its message
    return (
        _same(old, new, _FACTS)
        and (old.message == new.message or not waits)
        and _all_same(old.conditions, new.conditions, _CONDITION_FACTS)
        and _all_same(old.attempts, new.attempts, _ATTEMPT_FACTS)
    )


def _all_same(old: Sequence[Message], new: Sequence[Message], fields: Collection[str]) -> bool:
    return len(old) == len(new) and all(
        one is other or _same(one, other, fields) for one, other in zip(old, new, strict=True)
    )


def _same(old: Message, new: Message, fields: Collection[str]) -> bool:
    return all(getattr(old, name) == getattr(new, name) for name in fields)


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
    """Spreads the writes that can wait; times are of the monotonic clock, in seconds.

    Over all jobs they go in turns of `1 / _PER_SECOND`. A job that has to wait is given its own
    turn: if all were told the next one, all would come back for it, and plan in vain but for one.
    """

    interval: float
    _last: dict[Key, float] = field(default_factory=dict)
    _turns: dict[Key, float] = field(default_factory=dict)  # of those that wait
    _next: float = 0.0  # the first turn that nobody has

    def wait(self, key: Key, kind: Urgency, now: float) -> float:
        """Seconds until this write may happen; 0: it happens now."""
        if kind is not Urgency.NOW:
            interval = self.interval if kind is Urgency.PROGRESS else PROOF_INTERVAL
            due = self._last.get(key, float("-inf")) + interval
            if due <= now:
                due = self._turn(key, now)
            if due > now:
                return due - now
        self._turns.pop(key, None)
        self._last[key] = now
        return 0.0

    def _turn(self, key: Key, now: float) -> float:
        if key not in self._turns:
            self._turns[key] = max(self._next, now)
            self._next = self._turns[key] + 1 / _PER_SECOND
        return self._turns[key]

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._last.pop(key, None)
        self._turns.pop(key, None)
