"""Learning rate over steps (pure)."""

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    schedule: Literal["Cosine", "Linear", "Constant"],
    min_ratio: float,
) -> float:
    """Rate of the step that comes after `step` finished ones.

    Linear from 0 during warm-up (the first step already moves), then the schedule down to
    `min_ratio` x peak at the last step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "Constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    done = min(1.0, done)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "Cosine" else 1 - done
    return peak * (min_ratio + (1 - min_ratio) * shape)
