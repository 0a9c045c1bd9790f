"""The training loop of one rank.

    1. Resume from the newest valid checkpoint, or evaluate the baseline.
    2. Make a step over the next rows. Add its result to a vector that all ranks sum.
    3. Process the sum of the step before: divergence, requests to stop, progress, saves.
    4. Evaluate and save, if that is due. Repeat from 2.
    5. Finish with a last evaluation and a last checkpoint. After a request to stop, save what the
       rest of the grace period allows.

All ranks run the same code and make the same decisions at the same step. Everything that decides (a
request to stop, a clock, a loss that is not finite) is part of that vector (consensus.py) and is
processed one step late. Where a decision needs the result of the newest step, `_flush` waits for
it.
"""

import logging
import math
from collections import deque
from collections.abc import Callable

from finetune_trainer.checkpoint.checkpointer import Checkpointer
from finetune_trainer.checkpoint.write import Position
from finetune_trainer.common import garbage_collection, heap
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.training.consensus import Consensus
from finetune_trainer.training.divergence import Divergence
from finetune_trainer.training.evaluate import Evaluator
from finetune_trainer.training.step import RunState, Stepper, StepResult
from finetune_trainer.training.telemetry import Telemetry
from finetune_trainer.training.triggers import Limits, Triggers

_log = logging.getLogger(__name__)


class Loop:
    """Trains until the run is complete or a stop is requested. `attempt.build_loop` makes it."""

    def __init__(
        self,
        stepper: Stepper,
        evaluator: Evaluator,
        checkpointer: Checkpointer,
        triggers: Triggers,
        telemetry: Telemetry,
        limits: Limits,
        divergence: Divergence,
    ) -> None:
        self.state = RunState()
        self.evaluator = evaluator
        self._stepper, self._checkpointer = stepper, checkpointer
        self._triggers, self._telemetry, self._limits = triggers, telemetry, limits
        self._divergence = divergence
        self._consensus = Consensus()
        self._in_flight: deque[StepResult] = deque()
        self._has_stepped = False

    def run(self, highest_step: int) -> bool:
        """Train to the end. Returns whether the run is complete; if not, see `unsaved`.

        `highest_step` is the highest step that any earlier attempt has finished.
        """
        self._resume(highest_step)
        if self.state.step == 0 and not self._measure_baseline():
            return False
        self._telemetry.stage("Training")
        garbage_collection.freeze()
        heap.trim()  # the weights as they were loaded
        self._telemetry.resume_timing()
        while not self._is_complete():
            self._step()
            if len(self._in_flight) > 1:
                self._process_result()
            if self._triggers.stop:
                return self._stop()
            self._evaluate_and_save()
        return self._finish()

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint; 0 if none exists."""
        return self._checkpointer.saved_step

    @property
    def unsaved(self) -> int:
        """Number of steps that were finished after the newest checkpoint."""
        return self.state.step - self.saved_step

    @property
    def problem(self) -> str | None:
        """Why the newest save failed, or None if it succeeded."""
        return self._checkpointer.problem

    def close(self) -> None:
        """Report how the last save ended, and flush the log and the trackers."""
        self._telemetry.close(self._checkpointer.problem)

    # Begin.

    def _resume(self, highest_step: int) -> None:
        manifest = self._checkpointer.resume(highest_step)
        if manifest is not None:
            self.state = RunState(manifest.step, manifest.rows_consumed, manifest.tokens_seen)
            self._divergence.skipped = manifest.skipped_steps
        self.evaluator.resume(self.state.step)
        self._telemetry.begin(self.state.step)

    def _measure_baseline(self) -> bool:
        """Evaluate before the first step. Returns false if a stop was requested."""
        if self._limits.stop_requested_on_any_rank():
            return False
        return self.evaluator.loss_at(0) is not None or self._evaluate()

    def _is_complete(self) -> bool:
        return self._triggers.is_last(self.state.step) or self._triggers.stops_early(
            self.evaluator.history
        )

    # One step.

    def _step(self) -> None:
        """Make a step and add this rank's results to the consensus."""
        result = self._stepper.take(self.state)
        self._consensus.post(
            result.loss,
            result.router_loss,
            stop=self._limits.stop_requested(),
            save=self._triggers.interval_has_elapsed(),
            finished=self._checkpointer.saver.finished_phases,
            failed=self._checkpointer.saver.has_failed,
        )
        if not self._has_stepped:
            self._verify_first_step()
        self._in_flight.append(result)
        self.state = result.state
        garbage_collection.after(self.state.step)
        self._telemetry.advance()

    def _verify_first_step(self) -> None:
        """Check that all ranks computed the same weights. All ranks have started by now."""
        self._has_stepped = True
        self._stepper.verify_replicas()
        if self._checkpointer.all_ranks_write_in_background():
            self._limits.tighten_timeouts()

    def _process_result(self) -> None:
        """Process the oldest step in flight, with what the ranks agreed on in it."""
        result, agreed = self._in_flight.popleft(), self._consensus.receive()
        step, norm = result.state.step, float(result.norm)
        loss_is_finite = math.isfinite(agreed.loss)
        # The loss of a step is the loss of the weights before it.
        self._checkpointer.saver.report_loss(step - 1, is_finite=loss_is_finite)
        is_finite = result.applied and math.isfinite(norm) and loss_is_finite
        try:
            self._divergence.observe(step, agreed.loss, finite=is_finite)
        except TrainerError:
            self._checkpointer.mark_diverged(self._divergence.last_good(step))
            raise
        suspected = self._divergence.is_suspected
        last_good = self._divergence.last_good(step) if suspected else None
        self._checkpointer.retention.last_good = last_good
        self._triggers.update(agreed)
        self._telemetry.step(
            result,
            loss=agreed.loss,
            router_loss=agreed.router_loss if self._stepper.has_router_loss else None,
            norm=norm,
            skipped=self._divergence.skipped,
            checkpoint_problem=self._checkpointer.problem,
        )
        self._checkpointer.update(agreed.finished, agreed.failed)

    def _flush(self) -> None:
        """Process all steps in flight, because what follows depends on the newest one."""
        while self._in_flight:
            self._process_result()

    # Between two steps.

    def _evaluate_and_save(self) -> None:
        """Evaluate and save if one of them is due; a checkpoint always comes with an evaluation.

        Thus a checkpoint contains the loss of its own weights, and the best loss is saved.
        """
        step, triggers = self.state.step, self._triggers
        is_scheduled = triggers.save_is_scheduled(step)
        save = is_scheduled or (triggers.save_is_due and self._checkpointer.saver.is_idle)
        if triggers.is_last(step) or not (save or triggers.evaluation_is_due(step)):
            return
        self._flush()
        if self._divergence.in_doubt or triggers.stop:
            return
        if self.evaluator.loss_at(step) is None and not self._evaluate():
            return
        is_best = self.evaluator.history.improved and self.evaluator.loss_at(step) is not None
        if is_scheduled or is_best:
            self._drain()  # this step needs a checkpoint of its own
        if save or is_best:
            self._save(known_finite=False)
        self._telemetry.resume_timing()

    def _evaluate(self) -> bool:
        """Evaluate. Returns false if the evaluation was abandoned because of a stop."""
        completed = self.evaluator.measure(self.state.step, self._limits.stop_requested)
        self._telemetry.evaluation(self.state.step, self.evaluator.history.summary())
        return completed

    def _save(self, *, known_finite: bool) -> None:
        """Begin a checkpoint of this step. `known_finite`: its loss is known to be finite."""
        position = Position(
            step=self.state.step,
            rows_consumed=self.state.rows_consumed,
            tokens_seen=self.state.tokens_seen,
            skipped=self._divergence.skipped,
            validation_loss=self.evaluator.loss_at(self.state.step),
        )
        self._checkpointer.begin(position, known_finite=known_finite)
        self._triggers.save_began()

    def _drain(
        self, *, must_succeed: bool = False, is_too_late: Callable[[], bool] | None = None
    ) -> None:
        """Wait for the save in progress. It may be published if its weights have a finite loss."""
        saver = self._checkpointer.saver
        if saver.awaits_loss:
            saver.report_loss(self.state.step, is_finite=self._stepper.has_finite_loss())
        self._checkpointer.drain(must_succeed=must_succeed, is_too_late=is_too_late)

    def _save_finite(self) -> None:
        """Begin a checkpoint of this step without waiting for the loss of the next one.

        Raises TrainerError (86) if the loss of these weights is not finite.
        """
        if not self._stepper.has_finite_loss():
            raise self._divergence.not_finite(self.state.step)
        self._save(known_finite=True)

    # End.

    def _finish(self) -> bool:
        """Make the last evaluation and the last checkpoint. Returns whether the run is complete."""
        self._flush()
        if self._triggers.stop:
            return self._stop()  # the next attempt evaluates
        if self.evaluator.loss_at(self.state.step) is None:
            self._evaluate()
        self._drain()
        if self.unsaved:
            self._save_finite()
            self._drain(must_succeed=True)
        if self.evaluator.loss_at(self.state.step) is None:
            self._evaluate()  # this attempt or an earlier one was stopped before it evaluated
        return True

    def _stop(self) -> bool:
        """Save this step, if there is time for it. Returns whether the run is complete.

        A save that is killed half-way is lost, but the checkpoint before it remains. The rest of
        the grace period is checked before each wait, because the wait before it may have taken most
        of it.
        """
        self._flush()
        limits, saver = self._limits, self._checkpointer.saver
        if limits.have_time_for(saver.remaining_seconds):
            self._drain(is_too_late=limits.is_too_late)
        if saver.is_idle and self.unsaved and limits.have_time_for(saver.expected_seconds):
            self._save_finite()
            self._drain(must_succeed=True, is_too_late=limits.is_too_late)
        if self.unsaved:
            needed = saver.expected_seconds
            _log.warning(
                "no checkpoint of step %d: %s, and %.0f s are left until the pod is killed; raise "
                "runPolicy.terminationGracePeriodSeconds",
                self.state.step,
                f"a save is expected to take {needed:.0f} s" if needed else "it takes too long",
                limits.remaining_seconds() or 0.0,
            )
            return False
        return self._is_complete()
