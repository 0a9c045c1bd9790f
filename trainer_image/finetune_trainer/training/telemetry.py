"""What a rank shows while it trains: its report, the log of steps, trackers, and log lines."""

import logging

from finetune_api.progress import Evaluation, Stage
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.tracking.run_log import RunLog
from finetune_trainer.training.progress import ProgressMeter
from finetune_trainer.training.step import StepResult

_log = logging.getLogger(__name__)


class Telemetry:
    """Passes on the results of steps and evaluations."""

    def __init__(self, meter: ProgressMeter, report: Reporter, log: RunLog, rank: int) -> None:
        self._meter, self._report, self._run_log, self._rank = meter, report, log, rank

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
        norm: float,
        skipped: int,
        checkpoint_problem: str | None,
    ) -> None:
        """Report a finished step and log it."""
        progress, ledger = self._meter.step(
            result, loss=loss, norm=norm, skipped=skipped, checkpoint_problem=checkpoint_problem
        )
        # All ranks report: each supervisor derives from the length of steps what a hang is.
        self._report.training(progress=progress, ledger=ledger)
        self._run_log.step(progress, self._meter.seconds)
        if self._rank == 0:
            _log.info("step %d of %d, loss %.4f", progress.step, progress.total_steps, loss)

    def evaluation(self, step: int, summary: Evaluation) -> None:
        """Log the evaluation after a step."""
        self._run_log.evaluation(step, summary)

    def close(self) -> None:
        """Flush the log and the trackers."""
        self._run_log.close()
