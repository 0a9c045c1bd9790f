"""What a rank shows while it trains: its report, the log of steps, trackers, and log lines.

Speed, remaining time and the ledger of steps are measured here.
"""

import logging
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from finetune_api.progress import (
    MAX_KERNEL_PROBLEM,
    Evaluation,
    Plan,
    Progress,
    Stage,
    StepLedger,
)
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.tracking.run_log import RunLog
from finetune_trainer.training import device_memory
from finetune_trainer.training.mfu import Utilisation
from finetune_trainer.training.step import EXPERTS_EVERY, StepResult

_WINDOW = 60.0  # s
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """One step of the window over which speeds are averaged."""

    at: float  # time.monotonic()
    seconds: float
    tokens: int
    trained: int
    flops: float


class ProgressMeter:
    """Derives the progress that users see from the results of steps."""

    def __init__(
        self,
        plan: Plan,
        rows_per_epoch: int,
        highest_step: int,
        utilisation: Utilisation | None = None,
        kernel_problem: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Begin. `highest_step` is the highest step that any earlier attempt has finished.

        `kernel_problem` says why fused kernels are not used.
        """
        self._plan, self._rows_per_epoch, self._device = plan, rows_per_epoch, device
        self._highest_step, self._utilisation = highest_step, utilisation
        self._kernel_problem = kernel_problem and kernel_problem[:MAX_KERNEL_PROBLEM]
        self._window: deque[_Entry] = deque()
        self._first = self._unused_experts = 0
        self._productive = self._redone = 0.0
        self._timed_from = time.monotonic()
        self.seconds = 0.0
        """Seconds that the newest step took."""

    def start(self, step: int) -> None:
        """Start an attempt after `step` finished steps."""
        self._first = step

    def resume_timing(self) -> None:
        """Begin to measure steps again; what was done since the last step is not part of one."""
        self._timed_from = time.monotonic()

    def step(
        self,
        result: StepResult,
        *,
        loss: float,
        router_loss: float | None,
        norm: float,
        skipped: int,
        checkpoint_problem: str | None,
    ) -> tuple[Progress, StepLedger]:
        """Return progress and ledger after a finished step."""
        state = result.state
        if result.unused_experts is not None:
            self._unused_experts = len(result.unused_experts)
        seconds = max(1e-9, result.ended - self._timed_from)
        self._timed_from = max(self._timed_from, result.ended)
        self.seconds = seconds
        if state.step <= self._highest_step:
            self._redone += seconds
        else:
            self._productive += seconds
        now = time.monotonic()
        entry = _Entry(now, seconds, result.tokens, result.trained, self._flops(result))
        self._window.append(entry)
        while now - self._window[0].at > _WINDOW and len(self._window) > 1:
            self._window.popleft()
        spent = sum(entry.seconds for entry in self._window)
        left = self._plan.total_steps - state.step
        progress = Progress(
            step=state.step,
            total_steps=self._plan.total_steps,
            epoch=round(state.rows_consumed / self._rows_per_epoch, 4),
            train_loss=_finite(loss),
            router_loss=None if router_loss is None else _finite(round(router_loss, 6)),
            unused_experts=self._unused_experts or None,
            learning_rate=result.rate,
            grad_norm=_finite(norm),
            tokens_seen=state.tokens_seen,
            skipped_steps=skipped,
            tokens_per_second=round(sum(entry.tokens for entry in self._window) / spent, 1),
            trained_tokens_per_second=round(
                sum(entry.trained for entry in self._window) / spent, 1
            ),
            mfu=self._mfu(spent),
            **(device_memory.facts(self._device) if self._device else {}),
            eta_seconds=round(left * spent / len(self._window)),
            checkpoint_problem=checkpoint_problem,
            kernel_problem=self._kernel_problem,
            last_update_time=datetime.now(UTC),
        )
        ledger = StepLedger(
            productive_seconds=round(self._productive, 3),
            redone_seconds=round(self._redone, 3),
            first_step=self._first,
            highest_step=state.step,
        )
        return progress, ledger

    def _flops(self, result: StepResult) -> float:
        """Return the FLOPs that a step needs; 0 without a known utilisation."""
        if self._utilisation is None:
            return 0.0
        return self._utilisation.needed(result.rows, result.tokens, result.trained)

    def _mfu(self, spent: float) -> float | None:
        if self._utilisation is None:
            return None
        return round(self._utilisation.share(sum(entry.flops for entry in self._window), spent), 4)


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None  # NaN compares false


class Telemetry:
    """Passes on the results of steps and evaluations."""

    def __init__(self, meter: ProgressMeter, report: Reporter, log: RunLog, rank: int) -> None:
        self._meter, self._report, self._run_log, self._rank = meter, report, log, rank
        self._newest: Progress | None = None
        self._warned_of_experts = False

    def begin(self, step: int) -> None:
        """Start an attempt after `step` finished steps."""
        self._meter.start(step)
        self._run_log.begin(step)

    def stage(self, stage: Stage) -> None:
        """Report a new stage."""
        self._report.stage(stage)

    def advance(self) -> None:
        """Report activity."""
        self._report.advance()

    def resume_timing(self) -> None:
        """Begin to measure steps again; what was done since the last step is not part of one."""
        self._meter.resume_timing()

    def step(
        self,
        result: StepResult,
        *,
        loss: float,
        router_loss: float | None,
        norm: float,
        skipped: int,
        checkpoint_problem: str | None,
    ) -> None:
        """Report a finished step and log it."""
        progress, ledger = self._meter.step(
            result,
            loss=loss,
            router_loss=router_loss,
            norm=norm,
            skipped=skipped,
            checkpoint_problem=checkpoint_problem,
        )
        self._warn_of_experts(result.unused_experts)
        self._newest = progress
        # All ranks report: each supervisor derives from the length of steps what a hang is.
        self._report.training(progress=progress, ledger=ledger)
        self._run_log.step(progress, self._meter.seconds)
        if self._rank == 0:
            _log.info("step %d of %d, loss %.4f", progress.step, progress.total_steps, loss)

    def _warn_of_experts(self, unused: list[str] | None) -> None:
        """Name the experts without tokens, once in an attempt."""
        if unused and self._rank == 0 and not self._warned_of_experts:
            self._warned_of_experts = True
            _log.warning(
                "no token reached %d experts in the last %d steps, for example %s; raise "
                "training.routerAuxLoss in a new job if they should learn",
                len(unused),
                EXPERTS_EVERY,
                ", ".join(unused[:3]),
            )

    def evaluation(self, step: int, summary: Evaluation) -> None:
        """Log the evaluation after a step."""
        self._run_log.evaluation(step, summary)

    def close(self, checkpoint_problem: str | None) -> None:
        """Report how the last save ended, and flush the log and the trackers."""
        if self._newest is not None and self._newest.checkpoint_problem != checkpoint_problem:
            progress = self._newest.replace(checkpoint_problem=checkpoint_problem)
            self._report.training(progress=progress)
        self._run_log.close()
