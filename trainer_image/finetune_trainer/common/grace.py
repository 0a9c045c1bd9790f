"""How the end of a pod's termination grace period is divided."""

FLUSH_SECONDS = 5.0
"""Time for all trackers together to send what they hold, at the end of an attempt."""


def result_reserve(grace: float) -> float:
    """Return the seconds at the end of the grace period in which the supervisor writes a result."""
    return min(10.0, 0.1 * grace)
