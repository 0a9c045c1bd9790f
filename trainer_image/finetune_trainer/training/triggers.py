"""Decides what is due between two steps: an evaluation, a checkpoint, the end of the run."""

import time

from finetune_api.spec import Checkpoints, Evaluation
from finetune_trainer.run_dir.evaluations import History
from finetune_trainer.training.consensus import Agreed


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
