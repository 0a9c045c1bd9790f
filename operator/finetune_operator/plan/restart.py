"""The policy that decides whether an ended attempt is followed by another one, and when."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.plan.outcomes import PERMANENT_IF_REPEATED, RESTARTED, BackOff
from finetune_operator.plan.verdict import Verdict

MAX_RESTARTS = 99
_MAX_BACKOFF = 300.0  # seconds


@dataclass(frozen=True)
class Restart:
    """What follows an attempt that did not succeed."""

    counted: int  # counted restarts of the job from now on
    at: datetime | None  # when the next attempt may begin; None: the job fails
    why: str = ""  # why the job fails, or why this restart counts


def decide(
    status: FineTuneJobStatus,
    verdict: Verdict,
    *,
    repeated: Attempt | None,
    progressed: bool,
    max_restarts: int,
    backoff: float,
    jitter: float,
    now: datetime,
) -> Restart:
    """Decide what follows an attempt that ended with this verdict.

    `repeated` is an earlier attempt that failed in the same way at the same place, `progressed`
    whether the attempt finished a step that no earlier one had finished, `backoff` the first delay
    in seconds and `jitter` a number in [0, 1).
    """
    ending = verdict.ending
    useless = ending.counted_without_progress and not progressed
    counts = ending.counted or useless
    counted = status.counted_restarts + (1 if counts else 0)
    if ending.permanent:
        return Restart(status.counted_restarts, None)
    if repeated:
        where = f" at step {repeated.last_step}" if repeated.last_step else " before its first step"
        same = f"attempt {repeated.number} ended with {repeated.reason}{where} as well"
        why = f"gave up: {same}, so another attempt would not help"
        return Restart(status.counted_restarts, None, why)
    if counts and counted > max_restarts:
        why = f"gave up after {max_restarts} counted restarts"
        return Restart(status.counted_restarts, None, why)
    if ending.outcome in RESTARTED and status.restarts >= MAX_RESTARTS:
        return Restart(counted, None, f"gave up after {MAX_RESTARTS} restarts")
    seconds = backoff_seconds(backoff, counted) if counts else 0.0
    if ending.backs_off:
        seconds = backoff_seconds(backoff * ending.backs_off, _releases(status) + 1)
        if ending.backs_off == BackOff.COMPETING:
            seconds *= 0.5 + jitter
    why = "counted, because it finished no new step" if useless else ""
    return Restart(counted, now + timedelta(seconds=round(seconds)), why)


def backoff_seconds(backoff: float, counted: int) -> float:
    """Return the delay before the restart of that number: 10, 20, 40, ..., at most 300 seconds."""
    return min(_MAX_BACKOFF, backoff * 2.0 ** min(counted - 1, 16))


def jitter(job_uid: str, attempt: int) -> float:
    """Return a number in [0, 1) that is the same whenever this attempt is planned."""
    return hashlib.sha256(f"{job_uid}/{attempt}".encode()).digest()[0] / 256


def previous_failure(attempts: list[Attempt]) -> Attempt | None:
    """Return the newest failure before the last attempt, or None.

    Attempts in between that were preempted or released do not matter. Failures before a suspension
    are not comparable, because the gang may have been changed during it.
    """
    for attempt in reversed(attempts[:-1]):
        if attempt.outcome == "Suspended":
            return None
        if attempt.outcome == "Failed":
            return attempt
    return None


def repeated_failure(verdict: Verdict, step: int | None, before: Attempt | None) -> Attempt | None:
    """Return the previous failure if it was the same at the same step, else None."""
    if before is None or before.reason != verdict.reason:
        return None
    distance = PERMANENT_IF_REPEATED.get(verdict.reason)
    if distance is None:
        return None
    if distance == 0:
        return before if before.last_step == step else None
    return before if abs((before.last_step or 0) - (step or 0)) <= distance else None


def _releases(status: FineTuneJobStatus) -> int:
    """Return how many attempts in a row were released directly before the last one."""
    earlier = takewhile(lambda a: a.outcome == "Released", reversed(status.attempts[:-1]))
    return sum(1 for _ in earlier)
