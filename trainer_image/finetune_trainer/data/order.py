"""The order of rows in training (pure): one endless sequence, the same for every world size."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from finetune_api import mixture


@dataclass(frozen=True)
class Sequence:
    """The endless sequence of rows of one run: epoch after epoch, each in another order.

    `rows` is the number of rows of each source; the rows of a source are stored together, in the
    order of the sources. `weights` are the shares of the sources, empty if every row comes once per
    epoch.
    """

    rows: tuple[int, ...]
    seed: int
    weights: tuple[float, ...] = ()

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows in one epoch."""
        return sum(_counts(self))

    def at(self, position: int) -> int:
        """Return the row at a position."""
        epoch, place = divmod(position, self.rows_per_epoch)
        return int(_epoch(self, epoch)[place])

    def step(self, consumed: int, size: int, end: int | None = None) -> list[int]:
        """Return the `size` rows that follow `consumed` rows, fewer if the run ends at `end`."""
        stop = consumed + size if end is None else min(consumed + size, end)
        return [self.at(position) for position in range(consumed, stop)]


@lru_cache(maxsize=4)
def _counts(sequence: Sequence) -> list[int]:
    return mixture.epoch_counts(sequence.rows, sequence.weights)


@lru_cache(maxsize=2)
def _epoch(sequence: Sequence, epoch: int) -> NDArray[np.int64]:
    """Return all rows of an epoch in order, drawn from (seed, epoch) alone.

    With weights, the rows of a source come in complete passes, each in another order, and in a part
    of one more pass. Every row comes at least once, and the rows of the last part differ from epoch
    to epoch.
    """
    shuffled = np.random.Generator(np.random.PCG64([sequence.seed, epoch])).permutation
    if not sequence.weights:
        return shuffled(sum(sequence.rows))
    drawn = []
    first = 0
    for source, (rows, count) in enumerate(zip(sequence.rows, _counts(sequence), strict=True)):
        for number, begin in enumerate(range(0, count, rows)):
            seeds = [sequence.seed, epoch, source, number]
            order = np.random.Generator(np.random.PCG64(seeds)).permutation(rows)
            drawn.append(first + order[: count - begin])
        first += rows
    return shuffled(np.concatenate(drawn))


def micro_batches(rows: list[int], rank: int, world: int, micro_batch: int) -> list[list[int]]:
    """Return the rows of each forward pass of a rank.

    Every rank has the same number of passes; passes without rows left are empty. Row i of the step
    belongs to rank i mod `world`, so that a short last batch is spread evenly.
    """
    most = -(-len(rows) // world)
    count = -(-most // micro_batch)
    own = rows[rank::world]
    return [own[i * micro_batch : (i + 1) * micro_batch] for i in range(count)]
