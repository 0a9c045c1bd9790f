"""When a run has diverged, and which weights must not be saved because of it."""

from dataclasses import dataclass

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

_IN_A_ROW = 3


@dataclass
class Divergence:
    """Counts steps that were not applied because something in them was not finite."""

    learning_rate: float
    fp32: bool
    skipped: int = 0
    in_a_row: int = 0

    def is_too_much(self, finite: bool) -> bool:
        """Take in a step: whether the run cannot go on after it."""
        if finite:
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        # DeepSpeed leaves such a step out, except in fp32, where it ruins the weights.
        return self.fp32 or self.in_a_row >= _IN_A_ROW

    def last_good(self, step: int) -> int:
        """Step whose weights are beyond doubt when `step` was one too many: the streak began with
        those of the step after it."""
        return step - self.in_a_row - 1

    def ended(self, step: int) -> TrainerError:
        """Why the run ends with this step."""
        return self._error(f"gradients were not finite in {self.in_a_row} steps up to step {step}")

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

    def _error(self, what: str) -> TrainerError:
        return TrainerError(
            ExitCode.DIVERGED,
            f"{what}; lower training.learningRate (now {self.learning_rate}) or look at the data "
            "of these steps",
        )
