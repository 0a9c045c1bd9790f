"""Finished parts of a build on disk: what a builder that was killed leaves to the next one.

A part holds the documents of some consecutive blocks of one source. Its files appear under their
names only when they are whole, the description last.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.count import Count
from finetune_trainer.data.render import Document
from finetune_trainer.data.work import Chunk

_ARRAYS = {"tokens": "<u4", "trained": "u1", "lengths": "<u4", "examples": "<u8"}
_BLOCKS = 16  # of about 1 MiB of input


@dataclass(frozen=True)
class Held:
    """One example as parts keep it: digest, where it stands, the documents it became."""

    digest: int
    where: str
    documents: list[Document]


@dataclass
class Part:
    """What is known of a part without its documents. `names`: (example, where from there on)."""

    blocks: int = 0
    last: bool = False
    count: Count = field(default_factory=Count)
    names: list[tuple[int, str]] = field(default_factory=list)
    tokens: int = 0


class Parts:
    """The parts of one source."""

    def __init__(self, folder: Path, source: int) -> None:
        self._folder, self._prefix = folder, f"source-{source:02d}"
        self._open = _OpenPart()
        folder.mkdir(parents=True, exist_ok=True)
        self.finished = self._find()

    @property
    def blocks(self) -> int:
        """How many blocks of the input the finished parts hold."""
        return sum(part.blocks for part in self.finished)

    @property
    def is_complete(self) -> bool:
        """Whether the whole source is there."""
        return bool(self.finished) and self.finished[-1].last

    def add(self, name: str, chunk: Chunk) -> None:
        """The documents of the next block; `name` and a number say where one stands."""
        self._open.add(name, chunk)
        if self._open.part.blocks == _BLOCKS:
            self._finish(last=False)

    def complete(self) -> None:
        """There are no more blocks."""
        self._finish(last=True)

    def count(self) -> Count:
        """What was counted in all finished parts."""
        total = Count()
        for part in self.finished:
            total.add(part.count)
        return total

    def examples(self) -> Iterator[Held]:
        """All examples in order; one part is in memory at a time."""
        for number, part in enumerate(self.finished):
            arrays = {
                name: np.fromfile(self._path(number, name), dtype=dtype)
                for name, dtype in _ARRAYS.items()
            }
            yield from _held(part, arrays)

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
    """The part that is being filled."""

    def __init__(self) -> None:
        self.part = Part()
        self.arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in _ARRAYS}

    def add(self, name: str, chunk: Chunk) -> None:
        part = self.part
        if not part.names or part.names[-1][1] != name:
            part.names.append((part.count.kept, name))
        part.blocks += 1
        part.tokens += len(chunk.tokens)
        part.count.add(chunk.count)
        for field_name, arrays in self.arrays.items():
            arrays.append(getattr(chunk, field_name).ravel())


def _held(part: Part, arrays: dict[str, NDArray[Any]]) -> Iterator[Held]:
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    document, name = 0, ""
    names = dict(part.names)
    for number, (digest, place, count) in enumerate(arrays["examples"].reshape(-1, 3).tolist()):
        name = names.get(number, name)
        documents = []
        for _ in range(count):
            begin, end = (int(ends[document - 1]) if document else 0), int(ends[document])
            # Copies: a view would keep the whole part in memory while a row is open.
            documents.append(
                Document(arrays["tokens"][begin:end].copy(), arrays["trained"][begin:end].copy())
            )
            document += 1
        yield Held(digest, f"{name} {place}", documents)


class _written:  # noqa: N801 - used as a function
    """A file that appears whole, and that a crash of the node leaves whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._partial.open("wb")

    def __enter__(self) -> Any:
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)


def _from_json(values: dict[str, Any]) -> Part:
    count = values["count"]
    lengths = {int(length): number for length, number in count["overlong"].items()}
    names = [(number, name) for number, name in values["names"]]
    return Part(
        blocks=values["blocks"],
        last=values["last"],
        count=Count(**(count | {"overlong": lengths})),
        names=names,
        tokens=values["tokens"],
    )
