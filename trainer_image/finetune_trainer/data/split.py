"""From finished parts to the packed rows of a split."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import duplicates, packing
from finetune_trainer.data.parts import Held, Parts
from finetune_trainer.data.render import Document
from finetune_trainer.data.rows import RowWriter


@dataclass
class Written:
    """What was written, of one source or of several."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained: int = 0


def total(found: list[Written]) -> Written:
    """The sum over sources."""
    return Written(
        rows=sum(own.rows for own in found),
        examples=sum(own.examples for own in found),
        tokens=sum(own.tokens for own in found),
        trained=sum(own.trained for own in found),
    )


class Split:
    """One split of a prepared folder; rows never mix sources."""

    def __init__(self, folder: Path, name: str, length: int, report: Reporter) -> None:
        self._folder, self._name, self._length = folder, name, length
        self._report = report
        self._digests = folder / f"{name}.digests.u64"

    def write(
        self, sources: list[Parts], wanted: Callable[[Held], bool], *, packed: bool
    ) -> list[Written]:
        """The rows of the wanted examples, one source after another."""
        with RowWriter(self._folder, self._name) as writer, self._digests.open("wb") as digests:
            return [
                self._write_source(parts, wanted, writer, digests, packed=packed)
                for parts in sources
            ]

    def duplicates(self) -> int:
        """How many of the written examples repeat an earlier one; can be asked once."""
        found = duplicates.count(self._digests)
        self._digests.unlink()
        return found

    def _write_source(
        self,
        parts: Parts,
        wanted: Callable[[Held], bool],
        writer: RowWriter,
        digests: BinaryIO,
        *,
        packed: bool,
    ) -> Written:
        found = Written()

        def documents() -> Iterator[Document]:
            for held in parts.examples():
                self._report.advance()
                if wanted(held):
                    found.examples += 1
                    digests.write(held.digest.to_bytes(8, "little"))
                    yield from held.documents

        for row in packing.pack(documents(), self._length, packing=packed):
            writer.add(row)
            found.rows += 1
            found.tokens += len(row.tokens)
            found.trained += int(row.trained.sum())
        return found
