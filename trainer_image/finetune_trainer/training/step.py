"""One optimizer step over the next rows of the sequence, and its learning rate."""

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from finetune_api.progress import Plan
from finetune_api.spec import Training
from finetune_trainer.data.order import Sequence
from finetune_trainer.data.prepared import Rows
from finetune_trainer.model.engine import Engine, assert_equal_replicas
from finetune_trainer.model.expert_use import ExpertUse
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.training.passes import Passes

EXPERTS_EVERY = 100
"""Steps after which it is looked for experts that no token reached."""


@dataclass(frozen=True)
class RunState:
    """Where the run is. Every checkpoint contains it."""

    step: int = 0
    """Number of finished steps."""
    rows_consumed: int = 0
    tokens_seen: int = 0


@dataclass(frozen=True)
class StepResult:
    """What is known when the device has received a step. Nothing in it waits for the device."""

    state: RunState
    """Where the run is after this step."""
    rows: list[int]
    tokens: int
    """Tokens of the global batch."""
    trained: int
    """Trained tokens of the global batch."""
    rate: float
    norm: Any
    """Gradient norm before clipping, a float or a scalar on the device."""
    applied: bool
    loss: torch.Tensor
    """This rank's share of the loss of the global batch, a scalar in nats per trained token."""
    router_loss: torch.Tensor
    """This rank's share of what the routers add to it, 0 for models without such a loss."""
    ended: float
    """time.monotonic()"""
    unused_experts: list[str] | None = None
    """Experts without a token since the last look, if they were looked for after this step."""


class Stepper:
    """Makes steps. Every world size trains on the same rows in the same order."""

    def __init__(
        self,
        engine: Engine,
        ranks: Ranks,
        rows: Rows,
        sequence: Sequence,
        training: Training,
        plan: Plan,
    ) -> None:
        self._engine, self._ranks = engine, ranks
        self._rows, self._sequence = rows, sequence
        self._training, self._plan = training, plan
        self._passes = Passes(rows, plan, ranks)
        self._end = end_row(training, plan, sequence.rows_per_epoch)
        self._last_rows: list[int] = []
        self._experts = ExpertUse(engine.model.model)
        self.has_router_loss = engine.model.router is not None
        """Whether routers add to the loss that is minimized."""

    def take(self, state: RunState) -> StepResult:
        """Make the step that follows `state`."""
        plan, ranks = self._plan, self._ranks
        rows = self._sequence.step(state.rows_consumed, plan.global_batch_size, self._end)
        self._last_rows = rows
        trained = int(self._rows.trained_tokens[rows].sum())
        loss, router_loss = (
            torch.zeros((), device=ranks.device),
            torch.zeros((), device=ranks.device),
        )
        for batch, counts in self._passes.over(rows):
            # DeepSpeed averages gradients over the ranks, hence x world.
            part = self._engine.backward(batch, ranks.world / trained if counts else 0.0)
            if counts:
                loss += part
                if self.has_router_loss:
                    router_loss += self._engine.model.router_share
        rate = learning_rate(
            state.step,
            peak=plan.learning_rate,
            total_steps=plan.total_steps,
            warmup_steps=plan.warmup_steps,
            schedule=self._training.schedule,
            min_ratio=self._training.min_learning_rate_ratio,
        )
        norm, applied = self._engine.step(rate)
        looks = (state.step + 1) % EXPERTS_EVERY == 0
        tokens = int(self._rows.lengths[rows].sum())
        return StepResult(
            state=RunState(
                step=state.step + 1,
                rows_consumed=state.rows_consumed + len(rows),
                tokens_seen=state.tokens_seen + tokens,
            ),
            rows=rows,
            tokens=tokens,
            trained=trained,
            rate=rate,
            norm=norm,
            applied=applied,
            loss=loss.double() / trained,
            router_loss=router_loss.double() / trained,
            ended=time.monotonic(),
            unused_experts=self._experts.unused() if looks else None,
        )

    def verify_replicas(self) -> None:
        """Raise TrainerError (78) if the ranks do not have the same weights; collective."""
        assert_equal_replicas(self._engine, self._ranks)

    def has_finite_loss(self) -> bool:
        """Return whether the current weights give a finite loss on the last rows; collective.

        The loss of a step is the loss of the weights before it. Without this check, a checkpoint
        could contain weights that the next step finds to be unusable.
        """
        rows = self._last_rows
        return not rows or not self._ranks.any(not math.isfinite(self._loss(rows)))

    def _loss(self, rows: list[int]) -> float:
        """Return the loss of the current weights in this rank's first pass over some rows."""
        return float(self._engine.loss(next(self._passes.over(rows)).batch))


def learning_rate(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    schedule: Literal["Cosine", "Linear", "Constant"],
    min_ratio: float,
) -> float:
    """Return the learning rate of the step that follows `step` finished steps.

    It rises linearly during warm-up, from a first step above 0, and then follows the schedule down
    to `min_ratio` x peak at the last step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "Constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    done = min(1.0, done)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "Cosine" else 1 - done
    return peak * (min_ratio + (1 - min_ratio) * shape)


def end_row(training: Training, plan: Plan, rows_per_epoch: int) -> int:
    """Return the number of rows of the complete run. Only its last step can be short."""
    return training.rows_of_run(rows_per_epoch) or plan.total_steps * plan.global_batch_size
