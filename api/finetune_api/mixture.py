"""How sources are mixed (pure): how many rows of each make an epoch.

Operator and trainer must agree on the length of an epoch, so both ask this module.
"""

import math
from collections.abc import Sequence
from fractions import Fraction


def epoch_counts(rows: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Rows that an epoch takes from each source; `rows` says how many each has.

    Without weights (an empty list) every row once. With weights the shortest epoch in which every
    row comes at least once and each source has its share, so all but the source that is the
    longest for its weight repeat. Exact: weights count as the decimal numbers that people wrote.
    """
    if not weights:
        return list(rows)
    shares = [Fraction(str(weight)) for weight in weights]
    whole = sum(shares)
    shares = [share / whole for share in shares]
    length = max(math.ceil(count / share) for count, share in zip(rows, shares, strict=True))
    exact = [share * length for share in shares]
    counts = [math.floor(count) for count in exact]
    # Largest remainders first, earlier sources first among equals.
    rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in rest[: length - sum(counts)]:
        counts[i] += 1
    return counts
