"""A prepared folder: its packed rows, and the files beside them.

The rows are written by preparation and memory-mapped by training. A folder holds one set of files
per split (`train`, `validation`):

    <split>.tokens.u32     all tokens of all rows, one after another, little-endian uint32
    <split>.trained.u8     1 where the token carries loss (as a target), same length
    <split>.segments.u32   lengths of the documents, row by row
    <split>.index.i64      rows + 1 entries of (first token, first segment), int64 pairs

Beside them are a summary, the digest of the rows, samples, the chat template and the stop token.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Sources
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_api import mixture
from finetune_api.progress import DataSummary
from finetune_api.run import PreparedData
from finetune_api.spec import TrainSource
from finetune_trainer.data.order import Sequence
from finetune_trainer.run_dir.files import file_digest, value_digest

CARD = "card.json"
SAMPLE = "sample.txt"
TEMPLATE = "chat_template.jinja"
STOP = "stop_token.json"
DIGEST = "rows.digest"
_ROW_FILES = ("tokens.u32", "trained.u8", "segments.u32", "index.i64")


@dataclass(frozen=True)
class Row:
    """One row: 1-D arrays. `tokens` and `trained` have equal length; `segments` sum to it."""

    tokens: NDArray[np.uint32]
    trained: NDArray[np.uint8]
    segments: NDArray[np.uint32]

    def documents(self) -> "list[Row]":
        """Return each document as a row of its own."""
        bounds = pairwise(np.cumsum([0, *self.segments]).tolist())
        return [
            Row(self.tokens[begin:end], self.trained[begin:end], self.segments[number : number + 1])
            for number, (begin, end) in enumerate(bounds)
        ]


class Rows:
    """Random access to the rows of one split."""

    def __init__(self, folder: Path, split: str) -> None:
        def load(name: str, dtype: str) -> NDArray[np.generic]:
            path = folder / f"{split}.{name}"
            if path.stat().st_size == 0:
                return np.empty(0, dtype=dtype)
            return np.memmap(path, dtype=dtype, mode="r")

        self._tokens = load("tokens.u32", "<u4")
        self._trained = load("trained.u8", "u1")
        self._segments = load("segments.u32", "<u4")
        self._index = np.fromfile(folder / f"{split}.index.i64", dtype="<i8").reshape(-1, 2)
        self.trained_tokens = self._count_trained()
        """Tokens with loss, per row: every rank knows the denominator of the global batch."""
        self.lengths = np.diff(self._index[:, 0])
        """Tokens per row."""

    def _count_trained(self) -> NDArray[np.int64]:
        """Count without copying all tokens. `reduceat` is correct because no row is empty."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        counts: NDArray[np.int64] = np.add.reduceat(
            self._trained.view(np.uint8), self._index[:-1, 0], dtype=np.int64
        )
        return counts

    def __len__(self) -> int:
        return len(self._index) - 1

    def documents(self, row: int) -> int:
        """Return the number of documents of a row."""
        return int(self._index[row + 1, 1] - self._index[row, 1])

    def squared_lengths(self, rows: list[int], window: int | None = None) -> int:
        """Return twice the number of pairs of tokens in causal attention within documents.

        Without a window, that is the sum of their squared lengths.
        """
        parts = (self._segments[self._index[row, 1] : self._index[row + 1, 1]] for row in rows)
        total = 0
        for part in parts:
            lengths = part.astype(np.int64)
            seen = lengths if window is None else np.minimum(lengths, window)
            total += int((seen * (2 * lengths - seen)).sum())
        return total

    def __getitem__(self, row: int) -> Row:
        (token, segment), (token_end, segment_end) = self._index[row], self._index[row + 1]
        return Row(
            tokens=np.asarray(self._tokens[token:token_end]),
            trained=np.asarray(self._trained[token:token_end]),
            segments=np.asarray(self._segments[segment:segment_end]),
        )


class RowWriter:
    """A writer of one split, row by row. Leaving the context closes the files."""

    def __init__(self, folder: Path, split: str) -> None:
        self._files = {
            name: (folder / f"{split}.{name}").open("wb")
            for name in ("tokens.u32", "trained.u8", "segments.u32")
        }
        self._index = (folder / f"{split}.index.i64").open("wb")
        self._end = (0, 0)
        self._write_end()

    def add(self, row: Row) -> None:
        """Append a row."""
        self._files["tokens.u32"].write(row.tokens.astype("<u4").tobytes())
        self._files["trained.u8"].write(row.trained.astype("u1").tobytes())
        self._files["segments.u32"].write(row.segments.astype("<u4").tobytes())
        token, segment = self._end
        self._end = (token + len(row.tokens), segment + len(row.segments))
        self._write_end()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._files.values(), self._index):
            file.close()

    def _write_end(self) -> None:
        self._index.write(np.asarray(self._end, dtype="<i8").tobytes())


def digest_of_rows(folder: Path, advance: Callable[[], None]) -> str:
    """Return the digest of all rows, and of which rows are whose: what training depends on.

    Other files of the folder are left out, and so is how the rows were made: other versions of the
    libraries, or other files of the tokenizer, may make the same rows.
    """
    data = DataSummary.model_validate_json((folder / CARD).read_text())
    names = [f"{split}.{name}" for split in ("train", "validation") for name in _ROW_FILES]
    files = {name: file_digest(folder / name, advance) for name in names}
    return value_digest({"files": files, "sources": [source.rows for source in data.sources]})


def summary(folder: Path, sources: Sources[TrainSource]) -> DataSummary:
    """Return the summary of prepared data with the addresses and weights of a job's sources.

    The job that built the data may have named the same files by other addresses and weights.
    """
    data = DataSummary.model_validate_json((folder / CARD).read_text())
    named = [
        found.replace(source=source.source)
        for source, found in zip(sources, data.sources, strict=True)
    ]
    rows = [source.rows for source in named]
    weights = _weights(sources) if all(rows) else ()  # preparation refuses weights without rows
    counts = mixture.epoch_counts(rows, weights)
    return data.replace(sources=named, epoch_rows=sum(counts))


def notes(folder: Path) -> PreparedData:
    """Return what a person should look at. Its files have the names of the job that built it."""
    return PreparedData.model_validate_json((folder / CARD).read_text())


def sequence(folder: Path, sources: Sources[TrainSource], seed: int) -> Sequence:
    """Return the order in which a job trains on the rows of its sources."""
    rows = tuple(source.rows for source in summary(folder, sources).sources)
    return Sequence(rows, seed, _weights(sources))


def chat_template(folder: Path) -> str | None:
    """Return the chat template of the prepared data, or None if it is the tokenizer's own."""
    path = folder / TEMPLATE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _weights(sources: Iterable[TrainSource]) -> tuple[float, ...]:
    """Return the weights; either all sources have one or none has."""
    return tuple(source.weight for source in sources if source.weight is not None)
