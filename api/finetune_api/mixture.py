"""How many rows of each source make an epoch.

Operator and trainer must agree on the length of an epoch, so both use this module.
"""

import math
from collections.abc import Sequence
from fractions import Fraction


def epoch_counts(rows: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many rows an epoch takes from each source.

    `rows` holds the number of rows of each source. Without weights (an empty list) an epoch takes
    every row once. With weights it is the shortest epoch in which every row occurs at least once
    and each source has its share: the source that is largest for its weight occurs once, and the
    others repeat. The computation is exact: weights are the decimal numbers that users wrote.
    """
    if not weights:
        return list(rows)
    shares = [Fraction(str(weight)) for weight in weights]
    total = sum(shares)
    shares = [share / total for share in shares]
    length = max(math.ceil(count / share) for count, share in zip(rows, shares, strict=True))
    exact = [share * length for share in shares]
    counts = [math.floor(count) for count in exact]
    # Largest remainders first; equal remainders in the order of the sources.
    rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in rest[: length - sum(counts)]:
        counts[i] += 1
    return counts
