"""The validation loss: measured by all ranks, remembered over attempts."""

import logging
import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import order
from finetune_trainer.data.rows import Rows
from finetune_trainer.model import batch
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Peers
from finetune_trainer.run_dir import evaluations
from finetune_trainer.run_dir.evaluations import History
from finetune_trainer.run_dir.files import write_atomic
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger(__name__)


class Evaluator:
    """Held-out rows and what was measured on them so far (`history`, the same on all ranks)."""

    def __init__(
        self,
        engine: Engine,
        rows: Rows,
        micro_batch: int,
        peers: Peers,
        paths: RunPaths,
        report: Reporter,
    ) -> None:
        self._engine, self._rows, self._micro_batch = engine, rows, micro_batch
        self._peers, self._report = peers, report
        self._paths = paths
        self.history = History()

    @property
    def has_rows(self) -> bool:
        """There is something to measure on."""
        return len(self._rows) > 0

    def resume(self, step: int) -> None:
        """Take over what earlier attempts measured up to a step, as rank 0 finds it; collective."""
        told = [evaluations.read(self._paths).to_dict() if self._peers.rank == 0 else None]
        dist.broadcast_object_list(told, src=0, group=self._peers.control)
        self.history = History.model_validate(told[0]).until(step)
        self._report.training(evaluation=self.history.summary())

    def loss_at(self, step: int) -> float | None:
        """What was measured after a step."""
        newest = self.history.measured[-1:]
        return newest[0].loss if newest and newest[0].step == step else None

    def measure(self, step: int, stopped: Callable[[], bool]) -> bool:
        """Token-weighted loss after a step; every rank runs as many forward passes.

        True when it was left off because `stopped` says so on any rank: nothing is recorded then.
        """
        if not self.has_rows:
            return False
        self._report.stage("Evaluating")
        peers, total = self._peers, torch.zeros(2, dtype=torch.float64)
        rows = list(range(len(self._rows)))
        for own in order.micro_batches(rows, peers.rank, peers.world, self._micro_batch):
            if peers.any(stopped()):
                return True
            picked = [self._rows[row] for row in own or rows[:1]]
            loss = float(self._engine.loss(batch.make(picked, peers.device)))
            if own:
                total += torch.tensor([loss, float(self._rows.trained_tokens[own].sum())])
            self._report.advance()
        dist.all_reduce(total, group=peers.control)
        self._record(step, float(total[0] / total[1]))
        self._report.stage("Training")
        return False

    def _record(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            _log.error("the validation loss at step %d is not finite", step)
            return
        self.history = self.history.with_loss(step, loss)
        if self._peers.rank == 0:
            self._keep()
            self._report.training(evaluation=self.history.summary())
            _log.info("validation loss %.4f at step %d", loss, step)

    def _keep(self) -> None:
        try:
            write_atomic(self._paths.evaluations, self.history.to_json())
        except OSError as error:  # a number is lost, not the run
            _log.error("the evaluation could not be recorded (%s); training goes on", error)
