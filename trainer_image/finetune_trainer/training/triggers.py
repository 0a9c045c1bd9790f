"""Decides what is due between two steps, and whether there is time for it.

An evaluation, a checkpoint or the end of the run can be due. A request to stop leaves only the time
until the pod is killed.
"""

import time

from finetune_api.spec import Checkpoints, Evaluation
from finetune_trainer.common.stop_signal import FLUSH_SECONDS, StopSignal, result_reserve
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.run_dir.evaluations import History
from finetune_trainer.training import rendezvous
from finetune_trainer.training.consensus import Agreed

_EXIT_SECONDS = 1.0  # for a rank to leave after it has waited too long for a save


class Triggers:
    """What is due. Equal on all ranks, because it depends only on steps and on the consensus."""

    def __init__(
        self, total_steps: int, checkpoints: Checkpoints, evaluation: Evaluation | None, rank: int
    ) -> None:
        self._total_steps, self._rank = total_steps, rank
        self._steps = checkpoints.interval_steps
        self._seconds = checkpoints.seconds_between
        self._evaluate_steps = evaluation.interval_steps if evaluation else None
        self._early = evaluation.early_stopping if evaluation else None
        self._saved_at = time.monotonic()
        self.save_is_due = False
        """Whether intervalSeconds has elapsed; stays true until `save_began`."""
        self.stop = False
        """Whether the ranks have agreed to stop."""

    def update(self, agreed: Agreed) -> None:
        """Take into account what the ranks agreed on."""
        self.stop |= agreed.stop
        self.save_is_due |= agreed.save

    def interval_has_elapsed(self) -> bool:
        """Return whether intervalSeconds has elapsed by rank 0's clock; false on other ranks."""
        if self._rank != 0 or self._seconds is None:
            return False
        return time.monotonic() - self._saved_at >= self._seconds

    def save_is_scheduled(self, step: int) -> bool:
        """Return whether intervalSteps demands a checkpoint of exactly this step."""
        return self._steps is not None and step % self._steps == 0

    def save_began(self) -> None:
        """Start a new interval."""
        self.save_is_due, self._saved_at = False, time.monotonic()

    def evaluation_is_due(self, step: int) -> bool:
        """Return whether an evaluation is due after this step, with or without a checkpoint."""
        return self._evaluate_steps is not None and step % self._evaluate_steps == 0

    def is_last(self, step: int) -> bool:
        """Return whether the run has no more steps after this one."""
        return step >= self._total_steps

    def stops_early(self, history: History) -> bool:
        """Return whether early stopping ends the run."""
        early = self._early
        return early is not None and history.is_stale(early.patience, early.min_delta)


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
