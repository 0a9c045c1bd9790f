"""Which rows or documents each rank computes in each forward pass."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from finetune_api.progress import Plan
from finetune_trainer.data import order
from finetune_trainer.data.prepared import Row, Rows
from finetune_trainer.model.language_model import Batch, make_batch
from finetune_trainer.model.ranks import Ranks


class Pass(NamedTuple):
    """The input of one forward pass, and whether its loss counts."""

    batch: Batch
    counts: bool


class Passes:
    """The forward passes of this rank over rows that all ranks share.

    All ranks must make the same collectives, so they make the same number of passes. A rank that
    has nothing left repeats something, whose loss does not count.
    """

    def __init__(self, rows: Rows, plan: Plan, ranks: Ranks) -> None:
        self._rows, self._plan, self._ranks = rows, plan, ranks

    def over(self, rows: list[int]) -> Iterator[Pass]:
        """Yield the passes of this rank over some rows."""
        one_by_one = self._plan.forward_pass == "Document"
        for own in self._documents(rows) if one_by_one else self._micro_batches(rows):
            repeated = self._rows[rows[0]].documents()[:1] if one_by_one else [self._rows[rows[0]]]
            yield Pass(make_batch(own or repeated, self._ranks.device), bool(own))

    def _micro_batches(self, rows: list[int]) -> Iterator[list[Row]]:
        world, size = self._ranks.world, self._plan.micro_batch_size
        for own in order.micro_batches(rows, self._ranks.rank, world, size):
            yield [self._rows[row] for row in own]

    def _documents(self, rows: list[int]) -> Iterator[list[Row]]:
        """Yield each document of this rank's rows, and then nothing until all ranks are done."""
        rank, world = self._ranks.rank, self._ranks.world
        most = max(sum(map(self._rows.documents, rows[other::world])) for other in range(world))
        own = (document for row in rows[rank::world] for document in self._rows[row].documents())
        for _ in range(most):
            yield list(islice(own, 1))
