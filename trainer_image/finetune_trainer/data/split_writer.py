"""Writes the packed rows of a split from the finished parts of its sources."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import packing
from finetune_trainer.data.build_parts import SourceParts, TokenizedExample
from finetune_trainer.data.render import Document
from finetune_trainer.data.rows import RowWriter

_DIGESTS_AT_ONCE = 1 << 20


@dataclass
class Written:
    """Counts of what was written for one source or for several."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained: int = 0


def total(found: list[Written]) -> Written:
    """Return the sum over sources."""
    return Written(
        rows=sum(own.rows for own in found),
        examples=sum(own.examples for own in found),
        tokens=sum(own.tokens for own in found),
        trained=sum(own.trained for own in found),
    )


class SplitWriter:
    """The writer of one split of a prepared folder. A row holds examples of one source only."""

    def __init__(self, folder: Path, name: str, length: int, report: Reporter) -> None:
        self._folder, self._name, self._length = folder, name, length
        self._report = report
        self._digests = folder / f"{name}.digests.u64"

    def write(
        self,
        sources: list[SourceParts],
        wanted: Callable[[TokenizedExample], bool],
        *,
        packed: bool,
    ) -> list[Written]:
        """Write the rows of the wanted examples, one source after another."""
        with RowWriter(self._folder, self._name) as writer, self._digests.open("wb") as digests:
            return [
                self._write_source(parts, wanted, writer, digests, packed=packed)
                for parts in sources
            ]

    def duplicates(self) -> int:
        """Return how many of the written examples repeat an earlier one, and remove their digests.

        Can be called once, after `write`.
        """
        found = _count_duplicates(self._digests)
        self._digests.unlink()
        return found

    def _write_source(
        self,
        parts: SourceParts,
        wanted: Callable[[TokenizedExample], bool],
        writer: RowWriter,
        digests: BinaryIO,
        *,
        packed: bool,
    ) -> Written:
        found = Written()

        def documents() -> Iterator[Document]:
            for example in parts.examples():
                self._report.advance()
                if wanted(example):
                    found.examples += 1
                    digests.write(example.digest.to_bytes(8, "little"))
                    yield from example.documents

        for row in packing.pack(documents(), self._length, packing=packed):
            writer.add(row)
            found.rows += 1
            found.tokens += len(row.tokens)
            found.trained += int(row.trained.sum())
        return found


def _count_duplicates(path: Path) -> int:
    """Return the number of repeated digests in a file of uint64 digests, in bounded memory.

    Digests are distributed evenly, so their remainders make buckets of about the same size. Each
    bucket is counted separately.
    """
    digests_in_all = path.stat().st_size // 8
    buckets = digests_in_all // _DIGESTS_AT_ONCE + 1
    unique = 0
    for bucket in range(buckets):
        found = []
        with path.open("rb") as file:
            while len(digests := np.fromfile(file, dtype="<u8", count=_DIGESTS_AT_ONCE)):
                found.append(digests[digests % np.uint64(buckets) == bucket])
        unique += len(np.unique(np.concatenate(found))) if found else 0
    return digests_in_all - unique
