"""Which row comes when (pure): one endless sequence, the same for every world size."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


def row_at(position: int, rows: int, seed: int) -> int:
    """Row at a position of the sequence; epoch e is a permutation drawn from (seed, e)."""
    epoch, place = divmod(position, rows)
    return int(_permutation(rows, seed, epoch)[place])


def step_rows(consumed: int, size: int, rows: int, seed: int, end: int | None = None) -> list[int]:
    """Rows of the step that begins after `consumed` rows; short only when the run ends at `end`."""
    stop = consumed + size if end is None else min(consumed + size, end)
    return [row_at(position, rows, seed) for position in range(consumed, stop)]


def micro_batches(rows: list[int], rank: int, world: int, micro_batch: int) -> list[list[int]]:
    """This rank's forward passes: as many on every rank, an empty one where rows ran out.

    Row i of the step belongs to rank i mod world, so a short last batch is spread evenly.
    """
    most = -(-len(rows) // world)
    count = -(-most // micro_batch)
    own = rows[rank::world]
    return [own[i * micro_batch : (i + 1) * micro_batch] for i in range(count)]
