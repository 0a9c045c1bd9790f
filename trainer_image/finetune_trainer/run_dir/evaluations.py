"""What was measured on held-out data, step by step, and what follows from it."""

import logging

from pydantic import Field

from finetune_api.base import API_VERSION, Message
from finetune_api.progress import Evaluation
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger(__name__)


class Measured(Message):
    """One evaluation: loss in nats per trained token, of the weights after a step."""

    step: int
    loss: float


class History(Message):
    """`evaluations.json`: all of them, oldest first."""

    api_version: str = API_VERSION
    measured: list[Measured] = Field(default_factory=list)

    def until(self, step: int) -> "History":
        """As it was at a step: what is trained again is measured again."""
        return self.replace(measured=[found for found in self.measured if found.step <= step])

    def with_loss(self, step: int, loss: float) -> "History":
        """One more; a second measurement of a step replaces the first."""
        before = [found for found in self.measured if found.step < step]
        return self.replace(measured=[*before, Measured(step=step, loss=loss)])

    @property
    def best(self) -> Measured | None:
        """Lowest loss, the earliest of equals; the baseline counts."""
        return min(self.measured, key=lambda found: (found.loss, found.step), default=None)

    @property
    def improved(self) -> bool:
        """The newest is the best, and more than the baseline."""
        newest = self.measured[-1] if self.measured else None
        return newest is not None and newest.step > 0 and newest == self.best

    def is_stale(self, patience: int, min_delta: float) -> bool:
        """The last `patience` evaluations did not beat the best before by more than `min_delta`."""
        since, best = 0, float("inf")
        for found in self.measured:
            if found.loss < best - min_delta:
                since, best = 0, found.loss
            else:
                since += 1
        return since >= patience

    def losses(self) -> dict[int, float]:
        """Step -> loss."""
        return {found.step: found.loss for found in self.measured}

    def summary(self) -> Evaluation:
        """What the job's status shows."""
        newest, best = self.measured[-1] if self.measured else None, self.best
        return Evaluation(
            baseline=next((found.loss for found in self.measured if found.step == 0), None),
            last=newest and newest.loss,
            last_step=newest and newest.step,
            best=best and best.loss,
            best_step=best and best.step,
        )


def read(paths: RunPaths) -> History:
    """What the run's storage remembers; nothing where it cannot be read: it is measured again."""
    try:
        return History.model_validate_json(paths.evaluations.read_text())
    except FileNotFoundError:
        return History()
    except (OSError, ValueError) as error:
        _log.error("evaluations.json cannot be read (%s); training goes on", error)
        return History()
