"""Whose turn it is between two steps: evaluate, save, stop (pure but for the clock)."""

import math
import time

from finetune_api.progress import Plan
from finetune_api.run import RunConfig
from finetune_trainer.run_dir.evaluations import History
from finetune_trainer.training.consensus import Heard

_DEFAULT_INTERVAL = 900  # s


class Turns:
    """What is due; the same on all ranks, since it follows from steps and from what was heard."""

    def __init__(self, config: RunConfig, plan: Plan) -> None:
        checkpoints, evaluation = config.checkpoints, config.evaluation
        self._training, self._plan = config.training, plan
        self._steps = checkpoints.interval_steps
        self._seconds = checkpoints.interval_seconds
        if self._steps is None and self._seconds is None:
            self._seconds = _DEFAULT_INTERVAL
        self._evaluate_steps = evaluation.interval_steps if evaluation else None
        self._early = evaluation.early_stopping if evaluation else None
        self._saved_at = time.monotonic()
        self.save_is_due = False
        """By the clock; stays true until `saved`."""
        self.stop = False
        """A stop was agreed on."""

    def hear(self, heard: Heard) -> None:
        """Take in what the ranks agreed on."""
        self.stop |= heard.stop
        self.save_is_due |= heard.save

    def is_time_to_save(self) -> bool:
        """By this rank's clock; rank 0's is the one that counts."""
        return self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds

    def save_is_asked_for(self, step: int) -> bool:
        """By intervalSteps: after this very step."""
        return self._steps is not None and step % self._steps == 0

    def saved(self) -> None:
        """A save began."""
        self.save_is_due, self._saved_at = False, time.monotonic()

    def evaluation_is_due(self, step: int) -> bool:
        """After this step, whether or not anything is saved."""
        return self._evaluate_steps is not None and step % self._evaluate_steps == 0

    def is_over(self, history: History) -> bool:
        """Early stopping: further training would only overfit."""
        early = self._early
        return early is not None and history.is_stale(early.patience, early.min_delta)

    def end(self, rows: int) -> int:
        """Row at which the run ends; only the last step of all can be short."""
        training = self._training
        if training.max_steps is not None:
            return self._plan.total_steps * self._plan.global_batch_size
        epochs = 3.0 if training.epochs is None else training.epochs
        return math.ceil(epochs * rows)
