"""The order of rows, which is the same for every world size."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data import order
from finetune_trainer.data.order import Sequence

ROWS = st.integers(1, 50)
SEED = st.integers(0, 2**31 - 1)
MIXED = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0.05, 0.1, 0.25, 0.5, 1.0])),
    min_size=1,
    max_size=4,
)


def mixture(sources: list[tuple[int, float]], seed: int) -> Sequence:
    rows, weights = zip(*sources, strict=True)
    return Sequence(rows, seed, weights)


@given(st.lists(ROWS, min_size=1, max_size=3), SEED, st.integers(0, 5))
def test_without_weights_every_epoch_is_a_permutation(
    rows: list[int], seed: int, epoch: int
) -> None:
    sequence = Sequence(tuple(rows), seed)
    assert sequence.rows_per_epoch == sum(rows)
    found = [sequence.at(epoch * sum(rows) + place) for place in range(sum(rows))]
    assert sorted(found) == list(range(sum(rows)))


@given(MIXED, SEED, st.integers(0, 3))
def test_with_weights_every_epoch_has_every_row_and_the_shares(
    sources: list[tuple[int, float]], seed: int, epoch: int
) -> None:
    sequence = mixture(sources, seed)
    size = sequence.rows_per_epoch
    found = Counter(sequence.at(epoch * size + place) for place in range(size))
    assert sorted(found) == list(range(sum(sequence.rows)))
    first, all_weights = 0, sum(sequence.weights)
    for rows, weight in sources:
        own = [found[row] for row in range(first, first + rows)]
        assert max(own) - min(own) <= 1  # all passes but the last are complete
        assert abs(sum(own) - size * weight / all_weights) < 1.001
        first += rows


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int, *weights: float) -> list[int]:
        sequence = Sequence((30, 20), seed, weights)
        return sequence.step(number * sequence.rows_per_epoch, sequence.rows_per_epoch)

    for weights in ((), (0.5, 0.5)):
        orders = [epoch(seed, number, *weights) for seed in (0, 1) for number in (0, 1)]
        assert len({tuple(rows) for rows in orders}) == 4
        assert epoch(0, 1, *weights) == epoch(0, 1, *weights)


def test_the_repeated_rows_differ_from_epoch_to_epoch() -> None:
    """Check that 15 of 30 rows come twice, and not the same ones in each epoch."""
    sequence = Sequence((30, 45), 3, (0.5, 0.5))

    def twice(epoch: int) -> set[int]:
        counts = Counter(sequence.step(epoch * sequence.rows_per_epoch, sequence.rows_per_epoch))
        return {row for row, count in counts.items() if count == 2}

    assert len(twice(0)) == len(twice(1)) == 15
    assert twice(0) != twice(1)


@given(MIXED, SEED, st.integers(1, 17), st.booleans())
def test_steps_continue_across_epochs(
    sources: list[tuple[int, float]], seed: int, size: int, weighted: bool
) -> None:
    """Check that no row is dropped at the end of an epoch, and that only the last step is short."""
    sequence = mixture(sources, seed)
    if not weighted:
        sequence = Sequence(sequence.rows, seed)
    end = 3 * sequence.rows_per_epoch
    steps = [sequence.step(at, size, end) for at in range(0, end, size)]
    assert [row for step in steps for row in step] == [sequence.at(at) for at in range(end)]
    assert all(len(step) == size for step in steps[:-1])


@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 5))
def test_ranks_share_the_rows_of_a_step_and_have_equally_many_passes(
    rows: list[int], world: int, micro: int
) -> None:
    shares = [order.micro_batches(rows, rank, world, micro) for rank in range(world)]
    assert sorted(row for share in shares for batch in share for row in batch) == sorted(rows)
    assert len({len(share) for share in shares}) == 1
    assert all(len(batch) <= micro for share in shares for batch in share)
