"""One optimizer step over the next rows of the sequence."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from finetune_api.progress import Plan
from finetune_api.spec import Training
from finetune_trainer.data import order
from finetune_trainer.data.rows import Rows
from finetune_trainer.model import batch
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Peers
from finetune_trainer.training.schedule import learning_rate


@dataclass(frozen=True)
class StepFacts:
    """What is known when a step has been given to the device; nothing in it waits for one."""

    step: int
    """Finished steps, this one included."""
    rows: list[int]
    tokens: int
    """Of the whole batch."""
    trained: int
    rate: float
    norm: Any
    """Gradient norm before clipping, a float or a scalar on the device."""
    applied: bool
    loss: torch.Tensor
    """This rank's share of the batch's loss, scalar, nats per trained token."""
    ended: float
    """time.monotonic()"""


class Stepper:
    """Takes steps; the same rows in the same order for every world size."""

    def __init__(
        self, training: Training, plan: Plan, rows: Rows, engine: Engine, peers: Peers
    ) -> None:
        self._training, self._plan = training, plan
        self._rows, self._engine, self._peers = rows, engine, peers

    def take(self, step: int, rows: list[int]) -> StepFacts:
        """The step after `step` finished ones, over these rows."""
        plan, peers = self._plan, self._peers
        trained = int(self._rows.trained_tokens[rows].sum())
        loss = torch.zeros((), device=peers.device)
        for own in order.micro_batches(rows, peers.rank, peers.world, plan.micro_batch_size):
            # A rank that ran out of rows takes part with weight zero: collectives must match.
            scale = peers.world / trained if own else 0.0
            part = self._engine.backward(self._batch(own or rows[:1]), scale)
            if own:
                loss += part
        rate = learning_rate(
            step,
            peak=plan.learning_rate,
            total_steps=plan.total_steps,
            warmup_steps=plan.warmup_steps,
            schedule=self._training.schedule,
            min_ratio=self._training.min_learning_rate_ratio,
        )
        norm, applied = self._engine.step(rate)
        return StepFacts(
            step=step + 1,
            rows=rows,
            tokens=int(self._rows.lengths[rows].sum()),
            trained=trained,
            rate=rate,
            norm=norm,
            applied=applied,
            loss=loss.double() / trained,
            ended=time.monotonic(),
        )

    def probe(self, rows: list[int]) -> float:
        """Loss of the weights as they are on this rank's first share of some rows."""
        size = self._plan.micro_batch_size
        own = order.micro_batches(rows, self._peers.rank, self._peers.world, size)[0] or rows[:1]
        return float(self._engine.loss(self._batch(own)))

    def _batch(self, rows: list[int]) -> batch.Batch:
        return batch.make([self._rows[row] for row in rows], self._peers.device)
