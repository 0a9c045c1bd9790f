"""Whether an ended attempt is followed by another one, and when."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.failure import Verdict

_LONGEST = 300.0  # s
MOST_RESTARTS = 99
AGAIN = ("Failed", "Preempted")  # what follows is a restart; suspended or let go it is none


@dataclass(frozen=True)
class Restart:
    """What comes after an attempt that did not succeed."""

    counted: int
    at: datetime | None  # None: no more attempts
    why: str = ""  # why there are no more, or why this one counts


def after(
    status: FineTuneJobStatus,
    verdict: Verdict,
    *,
    repeated: bool,
    progressed: bool,
    most: int,
    backoff: float,
    jitter: float,
    now: datetime,
) -> Restart:
    """Decide; `progressed`: the attempt got further than the best before it; `jitter` in [0, 1)."""
    in_vain = verdict.outcome == "Preempted" and not progressed
    counts = verdict.counted or in_vain
    counted = status.counted_restarts + (1 if counts else 0)
    if verdict.permanent or repeated:
        return Restart(status.counted_restarts, None, "")
    if counts and counted > most:
        return Restart(status.counted_restarts, None, f"gave up after {most} counted restarts")
    if verdict.outcome in AGAIN and status.restarts >= MOST_RESTARTS:
        return Restart(counted, None, f"gave up after {MOST_RESTARTS} restarts")
    seconds = wait(backoff, counted) if counts else 0.0
    if verdict.backs_off:
        # Half gangs that let go together would meet again: each waits a little differently.
        seconds = wait(backoff, _released(status) + 1) * (0.5 + jitter)
    why = "it counts: it made no new step" if in_vain else ""
    return Restart(counted, now + timedelta(seconds=round(seconds)), why)


def wait(backoff: float, counted: int) -> float:
    """Seconds before the restart of that number: 10 s, 20 s, 40 s, ... at most 5 minutes."""
    return min(_LONGEST, backoff * 2.0 ** min(counted - 1, 16))


def jitter(job_uid: str, attempt: int) -> float:
    """In [0, 1), the same for the same attempt: a plan made again is the same plan."""
    return hashlib.sha256(f"{job_uid}/{attempt}".encode()).digest()[0] / 256


def _released(status: FineTuneJobStatus) -> int:
    """Gangs that let go one after another before this one."""
    earlier = takewhile(lambda a: a.outcome == "Released", reversed(status.attempts[:-1]))
    return sum(1 for _ in earlier)
