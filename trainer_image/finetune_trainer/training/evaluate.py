"""Measures the validation loss on all ranks, and records it for later attempts."""

import logging
import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from finetune_api.progress import Plan
from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data.prepared import Rows
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.run_dir import evaluations
from finetune_trainer.run_dir.evaluations import History
from finetune_trainer.run_dir.files import write_atomic
from finetune_trainer.training.passes import Passes

_log = logging.getLogger(__name__)


class Evaluator:
    """The validation rows, and the `history` of their losses, which is equal on all ranks."""

    def __init__(
        self,
        engine: Engine,
        rows: Rows,
        plan: Plan,
        ranks: Ranks,
        storage: RunStorage,
        report: Reporter,
    ) -> None:
        self._engine, self._rows = engine, rows
        self._passes = Passes(rows, plan, ranks)
        self._ranks, self._report = ranks, report
        self._storage = storage
        self.history = History()

    @property
    def has_rows(self) -> bool:
        """Whether the run has validation rows."""
        return len(self._rows) > 0

    def resume(self, step: int) -> None:
        """Read what earlier attempts measured up to a step, on rank 0 for all ranks; collective."""
        found = [evaluations.read(self._storage.paths).to_dict() if self._ranks.rank == 0 else None]
        dist.broadcast_object_list(found, src=0, group=self._ranks.control)
        self.history = History.model_validate(found[0]).until(step)
        self._report.training(evaluation=self.history.summary())

    def loss_at(self, step: int) -> float | None:
        """Return the loss after a step, or None if the newest evaluation is of another step."""
        newest = self.history.measured[-1:]
        return newest[0].loss if newest and newest[0].step == step else None

    def measure(self, step: int, stopped: Callable[[], bool]) -> bool:
        """Measure and record the mean loss per trained token after a step; collective.

        All ranks make the same number of forward passes. Returns false if `stopped` returned true
        on any rank: then the evaluation is abandoned, and nothing is recorded.
        """
        if not self.has_rows:
            return True
        self._report.stage("Evaluating")
        ranks, total = self._ranks, torch.zeros(2, dtype=torch.float64)
        rows = list(range(len(self._rows)))
        for batch, counts in self._passes.over(rows):
            if ranks.any(stopped()):
                return False
            loss = float(self._engine.loss(batch))
            if counts:
                total += torch.tensor([loss, float(len(batch.targets))])
            self._report.advance()
        dist.all_reduce(total, group=ranks.control)
        self._record(step, float(total[0] / total[1]))
        self._report.stage("Training")
        return True

    def _record(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            _log.error("the validation loss at step %d is not finite", step)
            return
        self.history = self.history.with_loss(step, loss)
        if self._ranks.rank == 0:
            self._write()
            self._report.training(evaluation=self.history.summary())
            _log.info("validation loss %.4f at step %d", loss, step)

    def _write(self) -> None:
        """Replace the history on storage. Raises TrainerError 79 if a newer attempt owns it."""
        try:
            self._storage.check_fence()
            write_atomic(self._storage.paths.evaluations, self.history.to_json())
        except OSError as error:  # one number is lost, but the run can continue
            _log.error("the evaluation could not be recorded (%s); training continues", error)
