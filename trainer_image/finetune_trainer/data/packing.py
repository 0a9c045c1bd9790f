"""Packs documents into rows and writes the rows of a split.

Documents are packed without cutting them: first fit over a bounded number of open rows.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data.build_parts import SourceParts, TokenizedExample
from finetune_trainer.data.prepared import Row, RowWriter
from finetune_trainer.data.render import Document

_OPEN_ROWS = 256  # bounds memory; with conversations, more open rows do not pack better
_DIGESTS_AT_ONCE = 1 << 20


def pack(documents: Iterable[Document], length: int, *, packing: bool) -> Iterator[Row]:
    """Yield rows of at most `length` tokens; every document is in exactly one of them, uncut.

    The same documents in the same order give the same rows. No document may be longer than
    `length`. Without `packing`, every document is a row.
    """
    if not packing:
        for document in documents:
            yield _row([document])
        return
    open_rows: list[list[Document]] = []
    room = np.full(_OPEN_ROWS, -1, dtype=np.int64)  # tokens left, -1 where no row is open
    for document in documents:
        size = len(document.tokens)
        fits = room >= size
        place = int(fits.argmax())
        if fits[place]:
            open_rows[place].append(document)
            room[place] -= size
            continue
        if len(open_rows) == _OPEN_ROWS:
            fullest = int(room.argmin())
            yield _row(open_rows.pop(fullest))
            room[fullest:-1] = room[fullest + 1 :]
        open_rows.append([document])
        room[len(open_rows) - 1] = length - size
    for documents_of_row in open_rows:
        yield _row(documents_of_row)


def _row(documents: list[Document]) -> Row:
    return Row(
        tokens=np.concatenate([d.tokens for d in documents]),
        trained=np.concatenate([d.trained for d in documents]),
        segments=np.asarray([len(d.tokens) for d in documents], dtype=np.uint32),
    )


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

    def shared(self, other: "SplitWriter") -> int:
        """Return how many examples of another split this one has as well.

        Can be called after `write`, before `duplicates`.
        """
        digests = (self._digests.stat().st_size + other._digests.stat().st_size) // 8
        buckets = digests // _DIGESTS_AT_ONCE + 1
        return sum(
            int(
                np.isin(
                    _bucket(other._digests, n, buckets), _bucket(self._digests, n, buckets)
                ).sum()
            )
            for n in range(buckets)
        )

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

        for row in pack(documents(), self._length, packing=packed):
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
        unique += len(np.unique(_bucket(path, bucket, buckets)))
    return digests_in_all - unique


def _bucket(path: Path, bucket: int, buckets: int) -> NDArray[np.uint64]:
    """Return the digests of a file of uint64 digests that are in one of the buckets."""
    found = [np.empty(0, dtype=np.uint64)]
    with path.open("rb") as file:
        while len(digests := np.fromfile(file, dtype="<u8", count=_DIGESTS_AT_ONCE)):
            found.append(digests[digests % np.uint64(buckets) == bucket])
    return np.concatenate(found)
