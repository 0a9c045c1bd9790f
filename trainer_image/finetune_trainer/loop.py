"""The training loop: micro-batches, one step, one agreement; then evaluate, save, stop.

Every rank runs the same code and takes the same turns; whatever decides a turn (a stop signal, a
clock, a non-finite loss) is agreed on first.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Plan
from finetune_api.run import RunConfig
from finetune_trainer import batch, fence, order, prepared
from finetune_trainer.checkpoint import choose, load, store, write
from finetune_trainer.checkpoint.write import Owner, Position
from finetune_trainer.data.rows import Rows
from finetune_trainer.divergence import Divergence
from finetune_trainer.engine import Engine
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate import Evaluator
from finetune_trainer.paths import RunPaths
from finetune_trainer.peers import Peers
from finetune_trainer.progress import ProgressMeter
from finetune_trainer.reporter import Reporter
from finetune_trainer.schedule import learning_rate

_log = logging.getLogger(__name__)
_DEFAULT_INTERVAL = 900  # s


@dataclass
class State:
    """Where the run stands; all of it is in a checkpoint or follows from one."""

    step: int = 0
    rows_consumed: int = 0
    tokens_seen: int = 0


@dataclass(frozen=True)
class Agreed:
    """What all ranks know after a step."""

    stop: bool
    save: bool
    loss: float


class Loop:
    """One rank's view of the run."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        engine: Engine,
        paths: RunPaths,
        owner: Owner,
        report: Reporter,
        device: torch.device,
        control: Any,
        stop: Any,
    ) -> None:
        folder = paths.prepared(config.prepared_digest or "")
        self.rows = Rows(folder, "train")
        self._sequence = prepared.sequence(config, folder)
        self.state = State()
        self.peers = Peers.of(device, control)
        self.evaluator = Evaluator(
            engine, Rows(folder, "validation"), plan.micro_batch_size, self.peers, paths, report
        )
        self._config, self._plan, self._engine = config, plan, engine
        self._paths, self._owner, self._report = paths, owner, report
        self._stop = stop
        self._meter = ProgressMeter(config, plan, self._sequence.epoch)
        fp32 = config.training.precision == "FP32"
        self._divergence = Divergence(plan.learning_rate, fp32)
        self._trained_rows: list[int] = []  # of the last step
        self._saved_at, self._saved_step = time.monotonic(), -1

    def run(self) -> bool:
        """Train to the end; False when it was stopped before, with everything saved."""
        self._resume()
        if self.state.step == 0 and self._agree(0.0).stop:
            return False
        if self.state.step == 0 and self.evaluator.result.baseline is None and self._evaluate():
            return False
        self._report.stage("Training")
        self._saved_at = time.monotonic()
        while self.state.step < self._plan.total_steps:
            agreed = self._step()
            last = self.state.step == self._plan.total_steps
            if last and not agreed.stop:  # else what is trained is saved first
                self._evaluate()
            if last or agreed.stop:
                self._save(must=True)
            elif agreed.save and not self._divergence.in_doubt:
                self._save(must=False)
            if agreed.stop and not last:
                return False
        if self.evaluator.result.last_step != self.state.step:
            self._evaluate()  # this attempt, or the one before, was stopped before it could
        return True

    @property
    def nothing_new(self) -> bool:
        """True while no step was finished since the newest checkpoint."""
        return self.state.step == max(0, self._saved_step)

    def _resume(self) -> None:
        found = choose.newest_whole(
            self._paths, self._owner.run_digest, self.peers.control, self._report.advance
        )
        if self.peers.rank == 0:
            self._report.training(checkpoints=store.records(self._paths))
        if found is None:
            self._meter.start(0)
            load.assert_consistent(self._engine)
            return
        folder, manifest = found
        load.load(self._engine, folder, manifest, self._report.advance)
        self.state.step = self._saved_step = manifest.step
        self.state.rows_consumed = manifest.rows_consumed
        self.state.tokens_seen = manifest.tokens_seen
        self.evaluator.resume()
        self._divergence.skipped = manifest.skipped_steps
        self._meter.start(self.state.step)
        _log.info("resumed from checkpoint %s", folder.name)

    def _step(self) -> Agreed:
        """One optimizer step over the next rows of the sequence."""
        state, plan, training = self.state, self._plan, self._config.training
        started = time.monotonic()
        rows = self._sequence.step(state.rows_consumed, plan.global_batch_size, self._end())
        trained = int(self.rows.trained_tokens[rows].sum())
        loss = torch.zeros((), device=self.peers.device)
        tokens = 0
        for own in order.micro_batches(
            rows, self.peers.rank, self.peers.world, plan.micro_batch_size
        ):
            # A rank that ran out of rows takes part with weight zero: collectives must match.
            picked = [self.rows[row] for row in own or rows[:1]]
            scale = self.peers.world / trained if own else 0.0
            micro = batch.make(picked, self.peers.device)
            part = self._engine.backward(micro, scale)
            if own:
                loss += part
        tokens = sum(len(self.rows[row].tokens) for row in rows)
        rate = learning_rate(
            state.step,
            peak=plan.learning_rate,
            total_steps=plan.total_steps,
            warmup_steps=plan.warmup_steps,
            schedule=training.schedule,
            min_ratio=training.min_learning_rate_ratio,
        )
        norm, applied = self._engine.step(rate)
        agreed = self._agree(float(loss) / trained)
        finite = applied and math.isfinite(norm) and math.isfinite(agreed.loss)
        if self._divergence.is_too_much(finite):
            self._condemn(self._divergence.last_good(state.step + 1))
            raise self._divergence.ended(state.step + 1)
        self._trained_rows = rows
        state.step += 1
        state.rows_consumed += len(rows)
        state.tokens_seen += tokens
        self._report.advance()
        progress, ledger = self._meter.step(
            step=state.step,
            loss=agreed.loss,
            rate=rate,
            norm=norm,
            tokens=tokens,
            trained=trained,
            seconds=time.monotonic() - started,
            tokens_seen=state.tokens_seen,
            rows_consumed=state.rows_consumed,
            skipped=self._divergence.skipped,
        )
        # From every rank: each supervisor judges a hang by how long steps take.
        self._report.training(progress=progress, ledger=ledger)
        if self.peers.rank == 0:
            _log.info("step %d of %d, loss %.4f", state.step, plan.total_steps, agreed.loss)
        return agreed

    def _agree(self, loss: float) -> Agreed:
        """Sum one small vector over the ranks: the loss, who was asked to stop, is a save due."""
        save = self.peers.rank == 0 and self._save_is_due()
        vector = torch.tensor([loss, float(self._stop.is_set()), float(save)], dtype=torch.float64)
        dist.all_reduce(vector, group=self.peers.control)
        total, stop, due = vector.tolist()
        return Agreed(stop=stop > 0, save=due > 0, loss=total)

    def _save_is_due(self) -> bool:
        """Asked before the step is counted: about the step that is just ending."""
        checkpoints, step = self._config.checkpoints, self.state.step + 1
        seconds = checkpoints.interval_seconds
        if checkpoints.interval_steps is None and seconds is None:
            seconds = _DEFAULT_INTERVAL
        by_steps = checkpoints.interval_steps and step % checkpoints.interval_steps == 0
        by_clock = seconds is not None and time.monotonic() - self._saved_at >= seconds
        return bool(by_steps or by_clock)

    def _evaluate(self) -> bool:
        """True when it was left off because of a stop."""
        return self.evaluator.measure(self.state.step, self._stop.is_set)

    def _is_ruined(self) -> bool:
        """Whether the weights as they are give no finite loss, told by rows that they just saw.

        The loss of a step is that of the weights before it: without this look a checkpoint could
        hold what the next step finds ruined.
        """
        rows = self._trained_rows
        size = self._plan.micro_batch_size
        own = order.micro_batches(rows, self.peers.rank, self.peers.world, size)[0] or rows[:1]
        picked = [self.rows[row] for row in own]
        loss = float(self._engine.loss(batch.make(picked, self.peers.device)))
        return self.peers.any(not math.isfinite(loss))

    def _save(self, *, must: bool) -> None:
        """Save; a failure ends the attempt (73) only where nothing comes after it."""
        if self._saved_step == self.state.step:
            return
        self._report.stage("Checkpointing")
        if self._is_ruined():
            ruined = self._divergence.ruined(self.state.step)
            if must:
                raise ruined
            _log.error("no checkpoint of step %d: %s", self.state.step, ruined.message)
            self._report.stage("Training")
            return
        evaluation = self.evaluator.result
        fresh = evaluation.last_step == self.state.step
        position = Position(
            step=self.state.step,
            rows_consumed=self.state.rows_consumed,
            tokens_seen=self.state.tokens_seen,
            skipped=self._divergence.skipped,
            validation_loss=evaluation.last if fresh else None,
        )
        first = self._saved_step < 0
        problem = write.save(
            self._engine,
            self._paths,
            self._owner,
            position,
            self.peers.control,
            self._report.advance,
        )
        if first:
            load.assert_consistent(self._engine)
        self._saved_at = time.monotonic()
        if problem:
            text = f"the checkpoint of step {self.state.step} could not be saved ({problem})"
            if must:
                raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text)
            # Training goes on: the older checkpoints stand, and the next save may succeed.
            _log.error("%s; training goes on", text)
        else:
            self._saved_step = self.state.step
            _log.info("saved a checkpoint of step %d", self.state.step)
        if self.peers.rank == 0:
            self._retain()
        self._report.stage("Training")

    def _retain(self) -> None:
        owner, keep = self._owner, self._config.checkpoints.keep_last
        try:
            fence.check(self._paths, owner.epoch, owner.attempt)
            for folder in store.superseded(self._paths, keep, owner.epoch):
                store.remove(folder)
        except OSError as error:
            _log.error("old checkpoints could not be removed (%s); training goes on", error)
        self._report.training(checkpoints=store.records(self._paths))

    def _condemn(self, last_good: int) -> None:
        """The next attempt must begin before the weights that made the first bad step."""
        if self.peers.rank == 0:
            fence.check(self._paths, self._owner.epoch, self._owner.attempt)
            store.condemn(self._paths, last_good)
            self._report.training(checkpoints=store.records(self._paths))

    def _end(self) -> int:
        """Row at which the run ends; only the last step of all can be short."""
        training = self._config.training
        if training.max_steps is not None:
            return self._plan.total_steps * self._plan.global_batch_size
        epochs = 3.0 if training.epochs is None else training.epochs
        return math.ceil(epochs * self._sequence.epoch)
