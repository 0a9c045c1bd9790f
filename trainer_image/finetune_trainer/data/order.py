"""Which row comes when (pure): one endless sequence, the same for every world size."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from finetune_api import mixture


@dataclass(frozen=True)
class Sequence:
    """The endless sequence of rows of one run: epoch after epoch, each in an order of its own.

    `rows` are those of each source, which lie one source after another; `weights` the sources'
    shares, empty where every row comes once an epoch.
    """

    rows: tuple[int, ...]
    seed: int
    weights: tuple[float, ...] = ()

    @property
    def epoch(self) -> int:
        """Rows of an epoch."""
        return sum(_counts(self))

    def at(self, position: int) -> int:
        """The row at a position."""
        epoch, place = divmod(position, self.epoch)
        return int(_epoch(self, epoch)[place])

    def step(self, consumed: int, size: int, end: int | None = None) -> list[int]:
        """Rows of the step after `consumed` rows; short only when the run ends at `end`."""
        stop = consumed + size if end is None else min(consumed + size, end)
        return [self.at(position) for position in range(consumed, stop)]


@lru_cache(maxsize=4)
def _counts(sequence: Sequence) -> list[int]:
    return mixture.epoch_counts(sequence.rows, sequence.weights)


@lru_cache(maxsize=2)
def _epoch(sequence: Sequence, epoch: int) -> NDArray[np.int64]:
    """All rows of an epoch, in order: drawn from (seed, epoch) alone.

    With weights a source's rows come in whole passes, each in an order of its own, and a part of
    one more: every row at least once, and other ones again in each epoch.
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
    """This rank's forward passes: as many on every rank, an empty one where rows ran out.

    Row i of the step belongs to rank i mod world, so a short last batch is spread evenly.
    """
    most = -(-len(rows) // world)
    count = -(-most // micro_batch)
    own = rows[rank::world]
    return [own[i * micro_batch : (i + 1) * micro_batch] for i in range(count)]
