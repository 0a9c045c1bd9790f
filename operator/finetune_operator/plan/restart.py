"""Whether an ended attempt is followed by another one, and when."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.failure import Verdict

_LONGEST = 300.0  # s
MOST_ATTEMPTS = 100


@dataclass(frozen=True)
class Restart:
    """What comes after a failure."""

    counted: int
    at: datetime | None  # None: no more attempts
    why_not: str = ""


def after(
    status: FineTuneJobStatus,
    verdict: Verdict,
    *,
    repeated: bool,
    progressed: bool,
    most: int,
    backoff: float,
    now: datetime,
) -> Restart:
    """Decide; `progressed`: the attempt got further than the best before it."""
    counts = verdict.counted or not progressed
    counted = status.counted_restarts + (1 if counts else 0)
    if verdict.permanent or repeated:
        return Restart(status.counted_restarts, None, "")
    if counted > most:
        return Restart(status.counted_restarts, None, f"gave up after {most} counted restarts")
    if (status.attempt or 0) >= MOST_ATTEMPTS:
        return Restart(counted, None, f"gave up after {MOST_ATTEMPTS} attempts")
    wait = min(_LONGEST, backoff * 2 ** (counted - 1)) if counts else 0.0
    return Restart(counted, now + timedelta(seconds=wait))
