"""The time limits that the operator sets: how long a stop may take, and how long to be silent."""

from finetune_trainer.common.grace import FLUSH_SECONDS, result_reserve
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.training import rendezvous

_EXIT_SECONDS = 1.0  # for a rank to leave after it has waited too long for a save


class Limits:
    """Requests to stop, and the time that is left after them, on this rank and on all ranks."""

    def __init__(
        self,
        stop: StopSignal,
        ranks: Ranks,
        *,
        termination_grace_period_seconds: int,
        progress_deadline_seconds: int,
    ) -> None:
        self._stop, self._ranks = stop, ranks
        self._grace = float(termination_grace_period_seconds)
        self._progress_deadline = progress_deadline_seconds

    def stop_requested(self) -> bool:
        """Return whether this rank was asked to stop."""
        return self._stop.is_set()

    def stop_requested_on_any_rank(self) -> bool:
        """Return whether any rank was asked to stop; collective."""
        return self._ranks.any(self._stop.is_set())

    def remaining_seconds(self) -> float | None:
        """Return the seconds until this pod is killed, or None if it was not asked to stop."""
        return self._stop.remaining(self._grace)

    def have_time_for(self, seconds: float | None) -> bool:
        """Return whether all ranks have this much time before their pods are killed; collective.

        An unknown duration (None) counts as short enough.
        """
        left = self.remaining_seconds()
        return not self._ranks.any(seconds is not None and left is not None and seconds > left)

    def is_too_late(self) -> bool:
        """Return whether this rank needs the rest of its grace period to leave in order."""
        left = self.remaining_seconds()
        reserve = max(result_reserve(self._grace), FLUSH_SECONDS) + _EXIT_SECONDS
        return left is not None and left < reserve

    def tighten_timeouts(self) -> None:
        """Shorten the timeouts of collectives, now that all ranks have made a step."""
        rendezvous.tighten(self._progress_deadline, self._ranks.control)
