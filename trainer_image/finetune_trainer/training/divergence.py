"""Detects when a run has diverged, and which weights must not be saved because of it."""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError

_IN_A_ROW = 3
_WINDOW = 500  # steps
_SHARE = 0.01  # of the window
_SPIKE = 3.0  # x the median loss of the window
_SPIKE_STEPS = 20


@dataclass
class Divergence:
    """Observes the steps of one attempt, in their order."""

    learning_rate: float
    skipped: int = 0
    """Number of steps of the run that were not applied because a value was not finite."""
    in_a_row: int = 0
    """Number of steps up to the newest one that were not finite."""
    _spiking: int = 0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def observe(self, step: int, loss: float, *, finite: bool) -> None:
        """Take the result of a step into account.

        Raises TrainerError (86) if the run has diverged.
        """
        self._recent.append(finite)
        if finite:
            self.in_a_row = 0
            self._observe_loss(step, loss)
            return
        self.skipped += 1
        self.in_a_row += 1
        lost = len(self._recent) - sum(self._recent)
        if self.in_a_row >= _IN_A_ROW:
            raise self._error(
                f"gradients were not finite in {self.in_a_row} steps up to step {step}"
            )
        if lost > _SHARE * _WINDOW:
            raise self._error(
                f"gradients were not finite in {lost} of the last {len(self._recent)} steps"
            )

    def last_good(self, step: int) -> int:
        """Return the newest step whose weights are certainly usable, after `step` was observed.

        A step shows the loss and the gradients of the weights before it. Therefore the weights
        before the first suspicious step are not certain to be usable either.
        """
        return step - self._suspected - 1

    @property
    def is_suspected(self) -> bool:
        """Whether the last steps may be the start of a divergence.

        If it is confirmed, checkpoints after `last_good` will be marked as diverged.
        """
        return self._suspected > 0

    @property
    def _suspected(self) -> int:
        return max(self.in_a_row, self._spiking)

    @property
    def in_doubt(self) -> bool:
        """Whether the last step was not finite, so that the next ones show if the weights are lost.

        Nothing is saved meanwhile unless the attempt ends: a checkpoint with such weights would be
        the newest one, and every later attempt would resume from it and end with 86.
        """
        return self.in_a_row > 0

    def not_finite(self, step: int) -> TrainerError:
        """Return the error for weights after a step that give no finite loss.

        Such weights are neither saved nor exported.
        """
        return self._error(f"the loss of the weights after step {step} is not finite")

    def _observe_loss(self, step: int, loss: float) -> None:
        normal = median(self._losses) if self._losses else math.inf
        # An overfitted model's loss is near zero and easily triples without any divergence.
        if len(self._losses) >= _SPIKE_STEPS and loss > _SPIKE * max(normal, 0.1):
            self._spiking += 1
        else:
            self._spiking = 0
            self._losses.append(loss)
        if self._spiking >= _SPIKE_STEPS:
            raise self._error(
                f"the loss stayed above 3 x its median ({normal:.4f}) for {_SPIKE_STEPS} steps, "
                f"{loss:.4f} at step {step}"
            )

    def _error(self, problem: str) -> TrainerError:
        return TrainerError(
            ExitCode.DIVERGED,
            f"{problem}; lower training.learningRate (now {self.learning_rate}) or look at the "
            "data of these steps",
        )
