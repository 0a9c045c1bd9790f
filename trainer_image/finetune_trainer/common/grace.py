"""How long processes wait for each other at their end.

These numbers depend on each other and on two numbers outside this package: the pod's
terminationGracePeriodSeconds, and CAUSE_WAIT in the operator's plan/verdict.py.
"""

FLUSH_SECONDS = 5.0
"""Time for all trackers together to send what they hold, at the end of an attempt."""

REMAINING_RANKS_SECONDS = FLUSH_SECONDS + 3.0
"""Time for the remaining ranks of a pod to end by themselves after one of them failed.

It shows which rank failed first, and rank 0 can flush its trackers meanwhile. It must be shorter
than the operator's CAUSE_WAIT, the time in which the results of other pods can show the cause.
"""


def result_reserve(grace: float) -> float:
    """Return the seconds at the end of the grace period in which the supervisor writes a result."""
    return min(10.0, 0.1 * grace)
