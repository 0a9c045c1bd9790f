"""A record of SIGTERM, from the first moment of a process.

Process 1 of a container ignores signals without a handler, and any other process is ended by them
without a result. Therefore this module imports next to nothing and is used before all other
imports.
"""

import signal
import time


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
