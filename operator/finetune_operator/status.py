"""When and how a status is written: one merge patch, and only if a fact has changed."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from finetune_api.base import Message
from finetune_api.status import Attempt, Condition, FineTuneJobStatus
from finetune_operator.plan.usage import HELD_INTERVAL, PROOF_INTERVAL, holds_only
from finetune_operator.queue import Key

_PER_SECOND = 20.0  # writes of progress for all jobs together
# Computed for each write, and never the reason for one.
_DERIVED = {"display", "usage"}
# A message is never urgent. The reason beside it is, so the first message of a reason is too.
_TEXTS = {"message"}
# Changes often while a gang starts and trains.
_COUNTS = {"progress", "workers"}
# Written with the next change of anything else.
_ATTEMPT_VOLATILE = (
    "device_seconds",
    "accounted_until",
    "productive_device_seconds",
    "lost_device_seconds",
    "last_step",
    "vanished_time",
)
# Compared separately, because only some of their fields count.
_PARTIAL = {"conditions", "attempts"}
_FACTS = FineTuneJobStatus.model_fields.keys() - _DERIVED - _TEXTS - _COUNTS - _PARTIAL
_ATTEMPT_FACTS = Attempt.model_fields.keys() - set(_ATTEMPT_VOLATILE) - _TEXTS
_CONDITION_FACTS = Condition.model_fields.keys() - {"message"}


class Urgency(IntEnum):
    """How soon a change must be visible."""

    NONE = 0
    USAGE = 1
    HELD = 2  # usage of a gang that does not train
    PROGRESS = 3
    NOW = 4


def urgency(old: FineTuneJobStatus, new: FineTuneJobStatus) -> Urgency:
    """Return how soon a change of the status must be written."""
    if old == new:
        return Urgency.NONE
    if not _same_facts(old, new):
        return Urgency.NOW
    if old.conditions != new.conditions or not _same(old, new, _COUNTS | _TEXTS):
        return Urgency.PROGRESS
    if not _all_same(old.attempts, new.attempts, _TEXTS):
        return Urgency.PROGRESS
    if old.usage == new.usage:
        return Urgency.NONE
    return Urgency.HELD if holds_only(new) else Urgency.USAGE


def _same_facts(old: FineTuneJobStatus, new: FineTuneJobStatus) -> bool:
    """Return whether nothing changed that must be visible at once."""
    return (
        _same(old, new, _FACTS)
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
    """Return the JSON merge patch (RFC 7386) from `old` to `new`, which replaces entire lists."""
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
    """Spreads the writes that can wait. Times are in seconds of the monotonic clock.

    The writes of all jobs are `1 / _PER_SECOND` apart. A job that has to wait gets a time slot of
    its own. If all jobs waited for the next free slot, all would be reconciled for it, and only one
    of them could write. The namespaces whose jobs wait share the rate, so that many jobs in one
    namespace do not delay those of others.
    """

    interval: float
    _last: dict[Key, float] = field(default_factory=dict)
    _slots: dict[Key, float] = field(default_factory=dict)  # of the jobs that wait
    _waiting: Counter[str] = field(default_factory=Counter)  # these jobs by namespace
    _next: dict[str, float] = field(default_factory=dict)  # the first free slot of a namespace

    def wait(self, key: Key, kind: Urgency, now: float) -> float:
        """Return the seconds until this write is allowed; 0 means that the caller writes now."""
        if kind is not Urgency.NOW:
            interval = {Urgency.HELD: HELD_INTERVAL, Urgency.USAGE: PROOF_INTERVAL}.get(kind)
            due = self._last.get(key, float("-inf")) + (interval or self.interval)
            if due <= now:
                due = self._slot(key, now)
            if due > now:
                return due - now
        self._free_slot(key)
        self._last[key] = now
        return 0.0

    def _slot(self, key: Key, now: float) -> float:
        if key not in self._slots:
            namespace = key[0]
            self._waiting[namespace] += 1
            self._slots[key] = max(self._next.get(namespace, 0.0), now)
            self._next[namespace] = self._slots[key] + len(self._waiting) / _PER_SECOND
        return self._slots[key]

    def _free_slot(self, key: Key) -> None:
        if self._slots.pop(key, None) is None:
            return
        self._waiting[key[0]] -= 1
        if not self._waiting[key[0]]:
            del self._waiting[key[0]]

    def forget(self, key: Key) -> None:
        """Forget a job that is gone."""
        self._last.pop(key, None)
        self._free_slot(key)
