"""SIGTERM, remembered from the first moment on.

Process 1 of a container ignores signals that it has no handler for, and any other process dies of
them without a result: so this imports next to nothing and is installed before everything else.
"""

import signal
import time


class StopSignal:
    """Whether and when this process was asked to stop; a second SIGTERM changes nothing."""

    def __init__(self) -> None:
        self.at: float | None = None
        signal.signal(signal.SIGTERM, self._hear)

    def is_set(self) -> bool:
        """It was."""
        return self.at is not None

    def set(self) -> None:
        """As if SIGTERM had come."""
        self._hear()

    def remaining(self, grace: float) -> float | None:
        """Seconds until the pod is killed, given its grace period; None when nobody asked."""
        return None if self.at is None else grace - (time.monotonic() - self.at)

    def _hear(self, *_: object) -> None:
        if self.at is None:
            self.at = time.monotonic()
