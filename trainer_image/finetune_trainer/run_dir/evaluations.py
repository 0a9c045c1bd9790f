"""The history of a run's evaluations, and what follows from it: the best step, early stopping."""

import logging

from pydantic import Field

from finetune_api.base import API_VERSION, Message
from finetune_api.progress import Evaluation
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger(__name__)


class Measured(Message):
    """One evaluation: the loss of the weights after a step, in nats per trained token."""

    step: int
    loss: float


class History(Message):
    """The contents of `evaluations.json`: all evaluations of a run, the oldest first."""

    api_version: str = API_VERSION
    measured: list[Measured] = Field(default_factory=list)

    def until(self, step: int) -> "History":
        """Return the history as it was at a step. Steps that are repeated are measured again."""
        return self.replace(measured=[found for found in self.measured if found.step <= step])

    def with_loss(self, step: int, loss: float) -> "History":
        """Return the history with one more evaluation, which replaces those from `step` on."""
        before = [found for found in self.measured if found.step < step]
        return self.replace(measured=[*before, Measured(step=step, loss=loss)])

    @property
    def best(self) -> Measured | None:
        """The evaluation with the lowest loss; the earliest if several are equal.

        Includes the baseline, which was measured before the first step.
        """
        return min(self.measured, key=lambda found: (found.loss, found.step), default=None)

    @property
    def improved(self) -> bool:
        """Whether the newest evaluation is the best one and not the baseline."""
        newest = self.measured[-1] if self.measured else None
        return newest is not None and newest.step > 0 and newest == self.best

    def is_stale(self, evaluations: int, min_delta: float) -> bool:
        """Return whether early stopping applies.

        This is so if none of the last `evaluations` losses was lower by more than `min_delta` than
        the best one before it.
        """
        since, best = 0, float("inf")
        for found in self.measured:
            if found.loss < best - min_delta:
                since, best = 0, found.loss
            else:
                since += 1
        return since >= evaluations

    def losses(self) -> dict[int, float]:
        """Return the loss of each step that was measured."""
        return {found.step: found.loss for found in self.measured}

    def summary(self) -> Evaluation:
        """Return the summary that the job's status shows."""
        newest, best = self.measured[-1] if self.measured else None, self.best
        return Evaluation(
            baseline=next((found.loss for found in self.measured if found.step == 0), None),
            last=newest and newest.loss,
            last_step=newest and newest.step,
            best=best and best.loss,
            best_step=best and best.step,
        )


def read(paths: RunPaths) -> History:
    """Return the history on the run's storage, or an empty one if it cannot be read."""
    try:
        return History.model_validate_json(paths.evaluations.read_text())
    except FileNotFoundError:
        return History()
    except (OSError, ValueError) as error:
        _log.error("evaluations.json cannot be read (%s); training goes on", error)
        return History()
