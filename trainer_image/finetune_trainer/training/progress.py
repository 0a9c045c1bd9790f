"""Speed, time left and the ledger of steps, kept by rank 0."""

import time
from collections import deque
from datetime import UTC, datetime

from finetune_api.progress import Plan, Progress, StepLedger
from finetune_api.run import RunConfig
from finetune_trainer.training.mfu import Utilisation
from finetune_trainer.training.step import StepFacts

_WINDOW = 60.0  # s


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None  # NaN compares false


class ProgressMeter:
    """Turns step times into what people look at."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        epoch_rows: int,
        utilisation: Utilisation | None = None,
    ) -> None:
        self._config, self._plan, self._epoch_rows = config, plan, epoch_rows
        self._utilisation = utilisation
        self._window: deque[tuple[float, float, int, int, float]] = deque()
        self._first = 0
        self._productive = self._redone = 0.0
        self._lap_at = time.monotonic()
        self.seconds = 0.0
        """How long the newest step took."""
        self.checkpoint_problem: str | None = None
        """Why the newest save failed."""

    def start(self, step: int) -> None:
        """The attempt begins after this many finished steps."""
        self._first = step

    def lap(self) -> None:
        """Steps begin (again): what was done since the last one is not their time."""
        self._lap_at = time.monotonic()

    def step(
        self,
        facts: StepFacts,
        *,
        loss: float,
        norm: float,
        tokens_seen: int,
        rows_consumed: int,
        skipped: int,
    ) -> tuple[Progress, StepLedger]:
        """Facts after a finished step; the totals are those of the run up to it."""
        step, seconds = facts.step, max(1e-9, facts.ended - self._lap_at)
        self._lap_at = max(self._lap_at, facts.ended)
        self.seconds = seconds
        if step <= self._config.highest_step:
            self._redone += seconds
        else:
            self._productive += seconds
        now = time.monotonic()
        self._window.append((now, seconds, facts.tokens, facts.trained, self._needed(facts)))
        while now - self._window[0][0] > _WINDOW and len(self._window) > 1:
            self._window.popleft()
        spent = sum(entry[1] for entry in self._window)
        left = self._plan.total_steps - step
        progress = Progress(
            step=step,
            total_steps=self._plan.total_steps,
            epoch=round(rows_consumed / self._epoch_rows, 4),
            train_loss=_finite(loss),
            learning_rate=facts.rate,
            grad_norm=_finite(norm),
            tokens_seen=tokens_seen,
            skipped_steps=skipped,
            tokens_per_second=round(sum(entry[2] for entry in self._window) / spent, 1),
            trained_tokens_per_second=round(sum(entry[3] for entry in self._window) / spent, 1),
            mfu=self._share(spent),
            eta_seconds=round(left * spent / len(self._window)),
            checkpoint_problem=self.checkpoint_problem,
            last_update_time=datetime.now(UTC),
        )
        ledger = StepLedger(
            productive_seconds=round(self._productive, 3),
            redone_seconds=round(self._redone, 3),
            first_step=self._first,
            highest_step=step,
        )
        return progress, ledger

    def _needed(self, facts: StepFacts) -> float:
        """FLOPs of a step; 0 where nobody can say of how many."""
        if self._utilisation is None:
            return 0.0
        return self._utilisation.needed(facts.rows, facts.tokens, facts.trained)

    def _share(self, spent: float) -> float | None:
        if self._utilisation is None:
            return None
        return round(self._utilisation.share(sum(entry[4] for entry in self._window), spent), 4)
