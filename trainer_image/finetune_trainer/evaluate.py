"""The validation loss: measured by all ranks, remembered over attempts."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.progress import Evaluation
from finetune_trainer import batch, order
from finetune_trainer.data.rows import Rows
from finetune_trainer.engine import Engine
from finetune_trainer.files import write_atomic
from finetune_trainer.paths import RunPaths
from finetune_trainer.peers import Peers
from finetune_trainer.reporter import Reporter

_log = logging.getLogger(__name__)


class Evaluator:
    """Held-out rows and what was measured on them so far (`result`)."""

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
        self._file = paths.storage / "evaluation.json"
        self.result = Evaluation()

    def resume(self) -> None:
        """Take over what earlier attempts measured, as rank 0 finds it; collective."""
        told = [self._recorded() if self._peers.rank == 0 else None]
        dist.broadcast_object_list(told, src=0, group=self._peers.control)
        self.result = Evaluation.model_validate(told[0])
        self._report.training(evaluation=self.result)

    def measure(self, step: int, stopped: Callable[[], bool]) -> bool:
        """Token-weighted loss after a step; every rank runs as many forward passes.

        True when it was left off because `stopped` says so on any rank: nothing is recorded then.
        """
        if not len(self._rows):
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
        before = self.result
        best, best_step = before.best, before.best_step
        if best is None or loss < best:
            best, best_step = loss, step
        self.result = Evaluation(
            baseline=loss if step == 0 else before.baseline,
            last=loss,
            last_step=step,
            best=best,
            best_step=best_step,
        )
        if self._peers.rank == 0:
            self._keep()
            self._report.training(evaluation=self.result)
            _log.info("validation loss %.4f at step %d", loss, step)

    def _keep(self) -> None:
        try:
            write_atomic(self._file, self.result.to_json())
        except OSError as error:  # a number is lost, not the run
            _log.error("the evaluation could not be recorded (%s); training goes on", error)

    def _recorded(self) -> dict[str, Any]:
        try:
            return Evaluation.model_validate_json(self._file.read_text()).to_dict()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.error("evaluation.json cannot be read (%s); training goes on", error)
            return {}
