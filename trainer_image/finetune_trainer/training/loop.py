"""The training loop: a step, what the ranks agreed on, then evaluate, save, stop.

Every rank runs the same code and takes the same turns; whatever decides a turn (a stop signal, a
clock, a non-finite loss) is agreed on first (agreement.py) and heard one step late. Where a turn
needs the newest facts, `_settle` waits for them.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Plan
from finetune_api.run import RunConfig
from finetune_trainer.checkpoint import choose, load
from finetune_trainer.checkpoint.retention import Keeper
from finetune_trainer.checkpoint.saver import Saved, Saver
from finetune_trainer.checkpoint.snapshot import Snapshot
from finetune_trainer.checkpoint.write import Owner, Position
from finetune_trainer.common import garbage_collection
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.grace import FLUSH_SECONDS, result_reserve
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.data import prepared
from finetune_trainer.data.rows import Rows
from finetune_trainer.model import replicas
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Peers
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.tracking.run_log import RunLog
from finetune_trainer.training import rendezvous
from finetune_trainer.training.consensus import Agreement
from finetune_trainer.training.divergence import Divergence
from finetune_trainer.training.evaluate import Evaluator
from finetune_trainer.training.mfu import Utilisation
from finetune_trainer.training.progress import ProgressMeter
from finetune_trainer.training.step import StepFacts, Stepper
from finetune_trainer.training.triggers import Turns

_log = logging.getLogger(__name__)
_LAST_WORDS = 1.0  # s, of a rank that has waited for a save in vain


@dataclass
class State:
    """Where the run stands; all of it is in a checkpoint or follows from one."""

    step: int = 0
    rows_consumed: int = 0
    tokens_seen: int = 0


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
        stop: StopSignal,
    ) -> None:
        folder = paths.prepared(config.prepared_digest or "")
        self.rows = Rows(folder, "train")
        self._sequence = prepared.sequence(folder, config.dataset.train, config.training.seed)
        self.state = State()
        self.peers = Peers.of(device, control)
        self.evaluator = Evaluator(
            engine, Rows(folder, "validation"), plan.micro_batch_size, self.peers, paths, report
        )
        self._config, self._plan, self._engine = config, plan, engine
        self._paths, self._owner, self._report = paths, owner, report
        self._stop = stop
        self._stepper = Stepper(config.training, plan, self.rows, engine, self.peers)
        self._agreement = Agreement()
        self._unheard: deque[StepFacts] = deque()
        self._turns = Turns(config, plan)
        self._divergence = Divergence(plan.learning_rate)
        utilisation = Utilisation.known(
            engine.model.model.config,
            self.rows,
            self.peers.world,
            device,
            bf16=config.training.precision == "BF16",
        )
        self._meter = ProgressMeter(config, plan, self._sequence.rows_per_epoch, utilisation)
        self._keeper = Keeper(paths, owner, config.checkpoints.keep_last, report)
        self._snapshot = Snapshot(engine, self.peers.local_world)
        self._saver = Saver(
            engine,
            self._snapshot,
            paths,
            owner,
            self.peers,
            report.advance,
            self._keeper.settle,
        )
        self.log = RunLog(config, paths, owner.epoch, self.peers.rank)
        self._saved_step = -1
        self._last_rows: list[int] = []

    def run(self) -> bool:
        """Train to the end; False when it was stopped before. `unsaved` says what is lost then."""
        self._resume()
        self.log.begin(self.state.step)
        if self.state.step == 0 and not self._begin():
            return False
        self._report.stage("Training")
        garbage_collection.freeze()
        self._meter.lap()
        while not self._is_complete():
            self._step()
            if len(self._unheard) > 1:
                self._hear()
            if self._turns.stop:
                return self._leave()
            self._evaluate_and_save()
        return self._finish()

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint of this attempt or before; 0 when there is none."""
        return max(0, self._saved_step, self._saver.published or 0)

    @property
    def unsaved(self) -> int:
        """Steps that were finished since the newest checkpoint."""
        return self.state.step - self.saved_step

    def _resume(self) -> None:
        found = choose.newest_whole(
            self._paths, self._owner.run_digest, self.peers.control, self._report.advance
        )
        if self.peers.rank == 0:
            self._keeper.tell()
        if found is None:
            load.assert_consistent(self._engine)
            if self._config.highest_step and self.peers.rank == 0:
                _log.warning(
                    "no checkpoint of this run can be used, although step %d was reached: training "
                    "begins again at the first step",
                    self._config.highest_step,
                )
        else:
            folder, manifest = found
            load.load(self._engine, folder, manifest, self._report.advance)
            self.state = State(manifest.step, manifest.rows_consumed, manifest.tokens_seen)
            self._saved_step = manifest.step
            self._divergence.skipped = manifest.skipped_steps
            self._saver.expect(manifest)
            _log.info("resumed from checkpoint %s", folder.name)
        self.evaluator.resume(self.state.step)
        self._meter.start(self.state.step)

    def _begin(self) -> bool:
        """The baseline, before the first step; False when a stop was asked for."""
        if self.peers.any(self._stop.is_set()):
            return False
        return self.evaluator.loss_at(0) is not None or not self._evaluate()

    def _is_complete(self) -> bool:
        last = self.state.step >= self._plan.total_steps
        return last or self._turns.is_over(self.evaluator.history)

    def _step(self) -> None:
        """Take a step and tell the others how it went."""
        state = self.state
        end = self._turns.end(self._sequence.rows_per_epoch)
        rows = self._sequence.step(state.rows_consumed, self._plan.global_batch_size, end)
        facts = self._stepper.take(state.step, rows)
        self._agreement.post(
            facts.loss,
            stop=self._stop.is_set(),
            save=self.peers.rank == 0 and self._turns.is_time_to_save(),
            finished=self._saver.finished,
            failed=self._saver.failed,
        )
        if not self._last_rows:
            self._trust()
        self._unheard.append(facts)
        self._last_rows = rows
        state.step += 1
        state.rows_consumed += len(rows)
        state.tokens_seen += facts.tokens
        garbage_collection.after(state.step)
        self._report.advance()

    def _trust(self) -> None:
        """After the attempt's first step: all computed the same, and all have arrived."""
        replicas.assert_equal(self._engine, self.peers)
        # Without a copy each rank waits for its own write, however long its storage takes.
        if not self.peers.any(not self._snapshot.is_copy):
            deadline = self._config.progress_deadline_seconds
            rendezvous.tighten(deadline, self.peers.control)

    def _hear(self) -> None:
        """What the ranks agreed on in the oldest step that was not heard yet."""
        facts, heard = self._unheard.popleft(), self._agreement.hear()
        norm = float(facts.norm)
        sound = math.isfinite(heard.loss)
        self._saver.judge(facts.step - 1, sound=sound)
        try:
            self._divergence.take_in(
                facts.step, heard.loss, finite=facts.applied and math.isfinite(norm) and sound
            )
        except TrainerError:
            self._condemn(self._divergence.last_good(facts.step))
            raise
        suspected = self._divergence.is_suspected
        self._keeper.last_good = self._divergence.last_good(facts.step) if suspected else None
        self._turns.hear(heard)
        behind = sum(len(later.rows) for later in self._unheard)
        progress, ledger = self._meter.step(
            facts,
            loss=heard.loss,
            norm=norm,
            tokens_seen=self.state.tokens_seen - sum(later.tokens for later in self._unheard),
            rows_consumed=self.state.rows_consumed - behind,
            skipped=self._divergence.skipped,
        )
        # From every rank: each supervisor judges a hang by how long steps take.
        self._report.training(progress=progress, ledger=ledger)
        self.log.step(progress, self._meter.seconds)
        if self.peers.rank == 0:
            total = self._plan.total_steps
            _log.info("step %d of %d, loss %.4f", facts.step, total, heard.loss)
        self._conclude(self._saver.hear(heard.finished, heard.failed))

    def _condemn(self, last_good: int) -> None:
        """Rank 0 marks what lies after a step; none leaves before it has.

        Once a rank has left, those that are left have seconds, and then the next attempt begins.
        """
        self._report.stage("Checkpointing")
        try:
            if self.peers.rank == 0:
                self._saver.wait_for_marks()
                self._keeper.condemn(last_good)
        finally:
            self.peers.wait()

    def _settle(self) -> None:
        """Hear all that was posted: what follows needs to know how the last step went."""
        while self._unheard:
            self._hear()

    def _evaluate_and_save(self) -> None:
        """What is due between two steps: both, when a checkpoint is due.

        A checkpoint carries the loss of its own weights, and the best loss gets a checkpoint.
        """
        step, turns = self.state.step, self._turns
        asked = turns.save_is_asked_for(step)
        save = asked or (turns.save_is_due and self._saver.idle)
        if step >= self._plan.total_steps or not (save or turns.evaluation_is_due(step)):
            return
        self._settle()
        if self._divergence.in_doubt or self._turns.stop:
            return
        if self.evaluator.loss_at(step) is None and self._evaluate():
            return
        best = self.evaluator.history.improved and self.evaluator.loss_at(step) is not None
        if asked or best:
            self._drain()  # a checkpoint of this very step is wanted
        if save or best:
            self._save(sound=False)
        self._meter.lap()

    def _evaluate(self) -> bool:
        """True when it was left off because of a stop."""
        stopped = self.evaluator.measure(self.state.step, self._stop.is_set)
        self.log.evaluation(self.state.step, self.evaluator.history.summary())
        return stopped

    def _save(self, *, sound: bool) -> None:
        """Begin a checkpoint of this step."""
        first = self._saved_step < 0
        self._report.stage("Checkpointing")
        position = Position(
            step=self.state.step,
            rows_consumed=self.state.rows_consumed,
            tokens_seen=self.state.tokens_seen,
            skipped=self._divergence.skipped,
            validation_loss=self.evaluator.loss_at(self.state.step),
        )
        self._saver.begin(position, sound=sound)
        if first:
            load.assert_consistent(self._engine)
        self._turns.saved()
        self._report.stage("Training")

    def _conclude(self, saved: Saved | None, *, must: bool = False) -> None:
        """A failed save ends the attempt (73) only where nothing comes after it."""
        if saved is None:
            return
        problem = f"the checkpoint of step {saved.step} could not be saved ({saved.problem})"
        if saved.problem and must:
            raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, problem)
        self._meter.checkpoint_problem = problem if saved.problem else None
        if saved.problem:
            # The older checkpoints stand, and the next save may succeed.
            _log.error("%s; training goes on", problem)
            return
        self._saved_step = max(self._saved_step, saved.step)
        if self.peers.rank == 0:
            stall = self._saver.stalled
            _log.info("saved a checkpoint of step %d (stalled %.3f s)", saved.step, stall)

    def _drain(
        self, *, must: bool = False, is_too_late: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait for the save in the making, until it is over or too late."""
        if self._saver.undecided:
            self._saver.judge(self.state.step, sound=not self._is_ruined())
        if not self._saver.idle:
            self._report.stage("Checkpointing")
            self._conclude(self._saver.drain(is_too_late), must=must)
            self._report.stage("Training")

    def _save_now(self) -> None:
        """Save this step and wait for it; TrainerError when it cannot be saved."""
        self._settle()
        self._drain()
        if self.unsaved:
            self._save_sound()
            self._drain(must=True)

    def _save_sound(self) -> None:
        """Begin a checkpoint of this step that no later step has to prove to be sound."""
        if self._is_ruined():
            raise self._divergence.ruined(self.state.step)
        self._save(sound=True)

    def _is_ruined(self) -> bool:
        """Whether the weights as they are give no finite loss, told by rows that they just saw.

        The loss of a step is that of the weights before it: without this look a checkpoint could
        hold what the next step finds ruined.
        """
        rows = self._last_rows
        return bool(rows) and self.peers.any(not math.isfinite(self._stepper.probe(rows)))

    def _leave(self) -> bool:
        """Stopped: save where it stands, as far as there is time; True when nothing is left to do.

        A save that is killed half-way is worth nothing, and the one before it stands. What is left
        of the grace period is looked at before each wait: the one before may have taken most of it.
        """
        self._settle()
        if self._has_time_for(self._saver.remaining_seconds):
            self._drain(is_too_late=self._is_too_late)
        if self._saver.idle and self.unsaved and self._has_time_for(self._saver.expected_seconds):
            self._save_sound()
            self._drain(must=True, is_too_late=self._is_too_late)
        if self.unsaved:
            needed = self._saver.expected_seconds
            _log.warning(
                "no checkpoint of step %d: %s, and %.0f s are left until the pod is killed; raise "
                "runPolicy.terminationGracePeriodSeconds",
                self.state.step,
                f"a save is expected to take {needed:.0f} s" if needed else "it takes too long",
                self._stop.remaining(self._grace) or 0.0,
            )
            return False
        return self._is_complete()

    def _has_time_for(self, seconds: float | None) -> bool:
        """Whether all ranks have, before their pods are killed; what is not known is tried."""
        grace = self._stop.remaining(self._grace)
        return not self.peers.any(seconds is not None and grace is not None and seconds > grace)

    def _is_too_late(self) -> bool:
        """Whether what is left of this rank's grace period is needed to leave in order."""
        left = self._stop.remaining(self._grace)
        reserve = max(result_reserve(self._grace), FLUSH_SECONDS) + _LAST_WORDS
        return left is not None and left < reserve

    @property
    def _grace(self) -> float:
        return float(self._config.termination_grace_period_seconds)

    def _finish(self) -> bool:
        """The last evaluation and the last checkpoint; False when a stop left no time for it."""
        self._settle()
        if self._turns.stop:
            return self._leave()  # the next attempt evaluates
        if self.evaluator.loss_at(self.state.step) is None:
            self._evaluate()
        self._save_now()
        if self.evaluator.loss_at(self.state.step) is None:
            self._evaluate()  # this attempt, or the one before, was stopped before it could
        return True
