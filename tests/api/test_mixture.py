"""Tests how many rows of each source an epoch takes."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.mixture import epoch_counts

CASES: dict[str, tuple[list[int], list[float], list[int]]] = {
    "no weights: every row once": ([900, 50], [], [900, 50]),
    "shares as they are": ([900, 100], [0.9, 0.1], [900, 100]),
    "a small source repeats": ([900, 50], [0.9, 0.1], [900, 100]),
    "a large source decides": ([10, 1000], [0.5, 0.5], [1000, 1000]),
    "weights are relative": ([10, 30], [1, 3], [10, 30]),
    "remainders go to the largest": ([1, 1, 1], [0.5, 0.3, 0.2], [3, 1, 1]),
    "0.1 is a tenth": ([7, 63], [0.1, 0.9], [7, 63]),
    "one source": ([5], [0.3], [5]),
}


@pytest.mark.parametrize(("rows", "weights", "counts"), CASES.values(), ids=CASES)
def test_rows_of_an_epoch(rows: list[int], weights: list[float], counts: list[int]) -> None:
    assert epoch_counts(rows, weights) == counts


SOURCES = st.lists(
    st.tuples(st.integers(1, 10_000), st.floats(0.001, 1000, allow_nan=False)),
    min_size=1,
    max_size=16,
)


@given(SOURCES)
def test_every_row_occurs_and_shares_are_kept(sources: list[tuple[int, float]]) -> None:
    rows, weights = [list(column) for column in zip(*sources, strict=True)]
    counts = epoch_counts(rows, weights)
    assert all(count >= have for count, have in zip(counts, rows, strict=True))
    whole = sum(Fraction(str(weight)) for weight in weights)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - sum(counts) * Fraction(str(weight)) / whole) < 1
