"""A record of SIGTERM, from the first moment of a process, and the division of the time after it.

Process 1 of a container ignores signals without a handler, and any other process is ended by them
without a result. Therefore this module imports next to nothing and is used before all other
imports.

The lengths of time depend on each other and on two numbers outside this package: the pod's
terminationGracePeriodSeconds, and CAUSE_WAIT in the operator's plan/verdict.py.
"""

import signal
import time

FLUSH_SECONDS = 5.0
"""Time for all trackers together to send what they hold, at the end of an attempt."""
REMAINING_RANKS_SECONDS = FLUSH_SECONDS + 3.0
"""Time for the remaining ranks of a pod to end by themselves after one of them failed.

It shows which rank failed first, and rank 0 can flush its trackers meanwhile. It must be shorter
than the operator's CAUSE_WAIT, the time in which the results of other pods can show the cause.
"""


class StopSignal:
    """Records when this process was first asked to stop. Later SIGTERMs change nothing."""

    def __init__(self) -> None:
        self.at: float | None = None
        """time.monotonic() of the first SIGTERM, or None."""
        signal.signal(signal.SIGTERM, self._handle)

    def is_set(self) -> bool:
        """Return whether this process was asked to stop."""
        return self.at is not None

    def set(self) -> None:
        """Act as if SIGTERM had arrived."""
        self._handle()

    def remaining(self, grace: float) -> float | None:
        """Return the seconds until the pod is killed, or None without a request to stop.

        `grace` is the pod's termination grace period in seconds.
        """
        return None if self.at is None else grace - (time.monotonic() - self.at)

    def _handle(self, *_: object) -> None:
        if self.at is None:
            self.at = time.monotonic()


def result_reserve(grace: float) -> float:
    """Return the seconds at the end of the grace period in which the supervisor writes a result."""
    return min(10.0, 0.1 * grace)
