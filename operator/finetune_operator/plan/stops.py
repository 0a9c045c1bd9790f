"""Why the operator itself asks a gang to stop, and what follows from it.

A policy only *asks*. The reason is written to `status.attempts[].stopReason` before any pod is
deleted, so an operator that comes back later knows why a gang is ending, and a pod that somebody
else deleted is never taken for one of ours.
"""

from dataclasses import dataclass
from datetime import datetime

from finetune_operator.plan.failure import Outcome


@dataclass(frozen=True)
class Stop:
    """A policy's wish, now or at a later moment."""

    reason: str
    message: str
    at: datetime | None = None  # None: now; else not before then


@dataclass(frozen=True)
class Consequence:
    """What a stop means for the gang and for the job."""

    outcome: Outcome
    saves: bool  # the pods' own grace, time for a checkpoint; else a few seconds
    permanent: bool = False  # the job is Failed
    counted: bool = False  # against maxRestarts
    backs_off: bool = False  # the next attempt waits, with jitter


SUSPENDED = "Suspended"
ACTIVE_DEADLINE = "ActiveDeadlineExceeded"
START_DEADLINE = "StartDeadlineExceeded"
GANG_INCOMPLETE = "GangIncomplete"
HANG = "Hang"

CONSEQUENCES = {
    SUSPENDED: Consequence("Suspended", saves=True),
    ACTIVE_DEADLINE: Consequence("Failed", saves=True, permanent=True),
    START_DEADLINE: Consequence("Failed", saves=False, permanent=True),
    GANG_INCOMPLETE: Consequence("Released", saves=False, backs_off=True),
    HANG: Consequence("Failed", saves=False, counted=True),
}


def due(wishes: list[Stop], now: datetime) -> Stop | None:
    """The first policy, in the order of the list, whose moment has come."""
    return next((wish for wish in wishes if wish.at is None or wish.at <= now), None)


def wait(wishes: list[Stop], now: datetime) -> float | None:
    """Seconds until the next moment at which a policy must be asked again."""
    waits = [(wish.at - now).total_seconds() for wish in wishes if wish.at and wish.at > now]
    return min(waits, default=None)
