"""When a run has diverged, and which weights must not be saved because of it."""

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
    """Watches the steps of one attempt, in their order."""

    learning_rate: float
    skipped: int = 0
    """Steps of the whole run that were not applied: something in them was not finite."""
    in_a_row: int = 0
    _spiking: int = 0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def take_in(self, step: int, loss: float, *, finite: bool) -> None:
        """A step's facts; TrainerError 86 when the run cannot go on after it."""
        self._recent.append(finite)
        if finite:
            self.in_a_row = 0
            self._watch_loss(step, loss)
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
        """Step whose weights are beyond doubt when `step` was one too many.

        A streak of bad steps began with the weights before it; a spike with its first step.
        """
        return step - self._suspected - 1

    @property
    def is_suspected(self) -> bool:
        """A streak or a spike goes on that may be the end: weights after `last_good` may go."""
        return self._suspected > 0

    @property
    def _suspected(self) -> int:
        return max(self.in_a_row, self._spiking)

    @property
    def in_doubt(self) -> bool:
        """The last step was not finite: whether the weights are ruined shows in the next ones.

        Nothing is saved meanwhile unless it must be: a checkpoint of ruined weights would be the
        newest, and every later attempt would begin with it and end with 86.
        """
        return self.in_a_row > 0

    def ruined(self, step: int) -> TrainerError:
        """The weights after a step give no finite loss: no checkpoint, no model."""
        return self._error(f"the loss of the weights after step {step} is not finite")

    def _watch_loss(self, step: int, loss: float) -> None:
        normal = median(self._losses) if self._losses else math.inf
        # A loss near zero triples for no reason: overfitted, not diverged.
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

    def _error(self, what: str) -> TrainerError:
        return TrainerError(
            ExitCode.DIVERGED,
            f"{what}; lower training.learningRate (now {self.learning_rate}) or look at the data "
            "of these steps",
        )
