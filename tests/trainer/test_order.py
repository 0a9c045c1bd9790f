"""Which row comes when, whatever the world size."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer import order

ROWS = st.integers(1, 50)
SEED = st.integers(0, 2**31 - 1)


@given(ROWS, SEED, st.integers(0, 5))
def test_every_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    found = [order.row_at(epoch * rows + place, rows, seed) for place in range(rows)]
    assert sorted(found) == list(range(rows))


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return order.step_rows(number * 50, 50, 50, seed)

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)]
    assert len({tuple(rows) for rows in orders}) == 4
    assert epoch(0, 1) == epoch(0, 1)


@given(ROWS, SEED, st.integers(1, 17))
def test_steps_are_one_sequence_across_epochs(rows: int, seed: int, size: int) -> None:
    """No row is dropped at an epoch's end, and only the last step of all is short."""
    end = 3 * rows
    steps = [order.step_rows(at, size, rows, seed, end) for at in range(0, end, size)]
    assert [row for step in steps for row in step] == [
        order.row_at(at, rows, seed) for at in range(end)
    ]
    assert all(len(step) == size for step in steps[:-1])


@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 5))
def test_ranks_share_a_step_and_run_equally_often(rows: list[int], world: int, micro: int) -> None:
    shares = [order.micro_batches(rows, rank, world, micro) for rank in range(world)]
    assert sorted(row for share in shares for batch in share for row in batch) == sorted(rows)
    assert len({len(share) for share in shares}) == 1
    assert all(len(batch) <= micro for share in shares for batch in share)
