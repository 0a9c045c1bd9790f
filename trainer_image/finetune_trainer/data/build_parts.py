"""Finished parts of a build on disk, from which a later builder continues after a kill.

A part holds the documents of some consecutive blocks of one source. Each of its files appears under
its name only when it is complete, the description last.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.dropped_examples import ExampleCounts
from finetune_trainer.data.render import Document
from finetune_trainer.data.tokenize_block import TokenizedBlock
from finetune_trainer.run_dir.files import partial_name

_ARRAYS = {"tokens": "<u4", "trained": "u1", "lengths": "<u4", "examples": "<u8"}
_BLOCKS = 16  # per part, each of about 1 MiB of input


@dataclass(frozen=True)
class TokenizedExample:
    """One example of a part: its digest, its place in the source and its documents."""

    digest: int
    where: str
    documents: list[Document]


@dataclass
class Part:
    """The description of a part.

    `names` has (number of an example, place of the examples from there on, without their number).
    `format` is `Shape.title`.
    """

    blocks: int = 0
    last: bool = False
    count: ExampleCounts = field(default_factory=ExampleCounts)
    names: list[tuple[int, str]] = field(default_factory=list)
    tokens: int = 0
    format: str = ""


class SourceParts:
    """The parts of one source."""

    def __init__(self, folder: Path, source: int) -> None:
        self._folder, self._prefix = folder, f"source-{source:02d}"
        self._open = _OpenPart()
        folder.mkdir(parents=True, exist_ok=True)
        self.finished = self._find()

    @property
    def blocks(self) -> int:
        """Number of blocks of the input in the finished parts."""
        return sum(part.blocks for part in self.finished)

    @property
    def format(self) -> str | None:
        """The format of the rows; None for a source without rows."""
        return next((part.format for part in self.finished if part.format), None)

    @property
    def files(self) -> set[str]:
        """The names of the files that have an example."""
        return {place.rpartition(" ")[0] for part in self.finished for _, place in part.names}

    @property
    def is_complete(self) -> bool:
        """Whether the finished parts hold the complete source."""
        return bool(self.finished) and self.finished[-1].last

    def add(self, place: str, block: TokenizedBlock, form: str) -> None:
        """Add the documents of the next block; `place` is `Block.place`, `form` `Shape.title`."""
        self._open.part.format = form
        self._open.add(place, block)
        if self._open.part.blocks == _BLOCKS:
            self._finish(last=False)

    def complete(self) -> None:
        """Finish the last part: the source has no more blocks."""
        self._finish(last=True)

    def count(self) -> ExampleCounts:
        """Return the counts of all finished parts."""
        total = ExampleCounts()
        for part in self.finished:
            total.add(part.count)
        return total

    def examples(self) -> Iterator[TokenizedExample]:
        """Yield all examples in order; one part is in memory at a time."""
        for number, part in enumerate(self.finished):
            arrays = {
                name: np.fromfile(self._path(number, name), dtype=dtype)
                for name, dtype in _ARRAYS.items()
            }
            yield from _examples(part, arrays)

    def _find(self) -> list[Part]:
        found: list[Part] = []
        while (path := self._path(len(found), "json")).exists():
            found.append(_from_json(json.loads(path.read_text())))
        return found

    def _finish(self, *, last: bool) -> None:
        part, number = self._open.part, len(self.finished)
        part.last = last
        for name, arrays in self._open.arrays.items():
            with _written(self._path(number, name)) as file:
                for array in arrays:
                    file.write(array.astype(_ARRAYS[name], copy=False).tobytes())
        with _written(self._path(number, "json")) as file:
            file.write(json.dumps(asdict(part)).encode())
        self.finished.append(part)
        self._open = _OpenPart()

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"{self._prefix}-{number:06d}.{name}"


class _OpenPart:
    """The part that is being filled, in memory."""

    def __init__(self) -> None:
        self.part = Part()
        self.arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in _ARRAYS}

    def add(self, place: str, block: TokenizedBlock) -> None:
        part = self.part
        if block.count.seen and (not part.names or part.names[-1][1] != place):
            part.names.append((part.count.kept, place))
        part.blocks += 1
        part.tokens += len(block.tokens)
        part.count.add(block.count)
        for name, arrays in self.arrays.items():
            arrays.append(getattr(block, name).ravel())


def _examples(part: Part, arrays: dict[str, NDArray[Any]]) -> Iterator[TokenizedExample]:
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    document, place = 0, ""
    places = dict(part.names)
    for number, (digest, row, count) in enumerate(arrays["examples"].reshape(-1, 3).tolist()):
        place = places.get(number, place)
        documents = []
        for _ in range(count):
            begin, end = (int(ends[document - 1]) if document else 0), int(ends[document])
            # Copies: a view would keep the complete part in memory while a row is open.
            documents.append(
                Document(arrays["tokens"][begin:end].copy(), arrays["trained"][begin:end].copy())
            )
            document += 1
        yield TokenizedExample(digest, f"{place} {row}", documents)


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """Give a file that appears under its name when it is complete and synced to disk."""
    partial = partial_name(path)
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _from_json(values: dict[str, Any]) -> Part:
    count = values["count"]
    lengths = {int(length): number for length, number in count["overlong"].items()}
    left_out = {
        kind: [(file, row, why) for file, row, why in named]
        for kind, named in count["left_out"].items()
    }
    names = [(number, name) for number, name in values["names"]]
    return Part(
        blocks=values["blocks"],
        last=values["last"],
        count=ExampleCounts(**(count | {"overlong": lengths, "left_out": left_out})),
        names=names,
        tokens=values["tokens"],
        format=values["format"],
    )
