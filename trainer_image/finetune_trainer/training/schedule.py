"""The learning rate of each step, and the end of the run (pure)."""

import math
from typing import Literal

from finetune_api.progress import Plan
from finetune_api.spec import Training


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
    if training.max_steps is not None:
        return plan.total_steps * plan.global_batch_size
    epochs = 3.0 if training.epochs is None else training.epochs
    return math.ceil(epochs * rows_per_epoch)
