"""Requests of the operator's policies to stop a gang.

A policy only requests a stop. Its reason is written to `status.attempts[].stopReason` before any
pod is deleted, so that an operator that restarts knows why a gang is ending, and a pod that another
client deleted is never taken for one that the operator deleted. `outcomes.STOPS` has what follows.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class StopRequest:
    """A policy's request to stop the gang, now or at a later moment."""

    reason: str  # a key of outcomes.STOPS
    message: str
    at: datetime | None = None  # the earliest moment; None: now


def due(requests: list[StopRequest], now: datetime) -> StopRequest | None:
    """Return the first request in the order of the list whose moment has come."""
    return next((r for r in requests if r.at is None or r.at <= now), None)


def seconds_until_next(requests: list[StopRequest], now: datetime) -> float | None:
    """Return the seconds until the next later request is due, or None if there are none."""
    waits = [(r.at - now).total_seconds() for r in requests if r.at and r.at > now]
    return min(waits, default=None)
