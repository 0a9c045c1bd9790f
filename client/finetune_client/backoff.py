"""Delays between repeated attempts."""

import random
from collections.abc import Iterator


def backoff(first: float = 0.2, longest: float = 10.0) -> Iterator[float]:
    """Yield delays in seconds, without end, doubling from `first` to `longest`.

    Each delay is randomized by 25 %, so that many clients do not retry at the same moment.
    """
    delay = first
    while True:
        yield delay * random.uniform(0.75, 1.25)
        delay = min(delay * 2, longest)
