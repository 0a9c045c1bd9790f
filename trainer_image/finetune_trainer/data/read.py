"""Reads files of data of any type: `blocks` cuts a file into blocks, `rows` parses a block.

The process that reads a file does as little as possible: blocks are parsed in the processes that
they are sent to. Memory is bounded by the block size and the longest row, not by the file. JSON
Lines, a JSON list and CSV may be compressed with gzip. Parquet and Arrow are read in small batches.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_trainer.data import json_list
from finetune_trainer.data.example import bad_data
from finetune_trainer.data.source_file import kind_of, unknown_kind

BLOCK_BYTES = 1 << 20  # input per block, approximately
Row = tuple[str, Any]
"""The place of a row, for messages, and its value."""
_UNREADABLE = (EOFError, OSError, zlib.error)  # gzip raises any of them for a damaged file
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ROWS_PER_BLOCK = 512  # of a columnar file
_PARQUET_BUFFER = 1 << 20


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of one file, not parsed yet.

    `data` depends on `kind`. lines: JSON Lines as bytes. texts: a list of JSON values as text.
    cells: the header and a list of (line number, values). batch: an Arrow stream with one record
    batch. `first` is the line or row number of the first row, from 1. `done` is the number of bytes
    of the file that were read up to here.
    """

    name: str
    kind: Literal["lines", "texts", "cells", "batch"]
    first: int
    data: Any
    done: int

    @property
    def place(self) -> str:
        """The place of a row without its number: "<file> line" or "<file> row"."""
        return f"{self.name} {'line' if self.kind in ('lines', 'cells') else 'row'}"


def blocks(path: Path, name: str) -> Iterator[Block]:
    """Yield the blocks of a file, the same ones at every call.

    `name` is the file's name in messages. Raises TrainerError (65) if the file cannot be read.
    """
    reader = _READERS.get(kind_of(path))
    if reader is None:
        raise unknown_kind(path, name)
    return reader(path, name)


def rows(block: Block) -> Iterator[Row]:
    """Yield the parsed rows of a block; TrainerError (65) names a row that cannot be parsed."""
    return _PARSERS[block.kind](block)


def _json_lines(path: Path, name: str) -> Iterator[Block]:
    """Yield the blocks of a file with one JSON object per line."""
    with _File(path) as file:
        for number, data in _complete_lines(file, name):
            yield Block(name, "lines", number, data, file.done)


def _parse_lines(block: Block) -> Iterator[Row]:
    """Yield the rows of a block of JSON Lines; blank lines are skipped."""
    for number, line in enumerate(block.data.split(b"\n"), block.first):
        if line and not line.isspace():
            where = f"{block.name} line {number}"
            yield where, _parse(_decode(line, where), where, "every line must be one JSON object")


def _json_list_file(path: Path, name: str) -> Iterator[Block]:
    """Yield the blocks of a file that is one JSON list of objects."""
    number, texts, size = 1, [], 0
    with _File(path) as file:
        for text in json_list.elements(file.chunks(name), name):
            texts.append(text)
            size += len(text)
            if size >= BLOCK_BYTES:
                yield Block(name, "texts", number, texts, file.done)
                number, texts, size = number + len(texts), [], 0
        if texts:
            yield Block(name, "texts", number, texts, file.done)


def _parse_texts(block: Block) -> Iterator[Row]:
    """Yield the rows of a block of a JSON list."""
    for number, text in enumerate(block.data, block.first):
        where = f"{block.name} row {number}"
        yield where, _parse(text, where, "the file must be a list of objects")


def _csv_file(path: Path, name: str) -> Iterator[Block]:
    """Yield the blocks of a CSV file whose first row is its header."""
    csv.field_size_limit(json_list.MAX_ROW)
    header: list[str] | None = None
    number, size = 0, 0
    cells: list[tuple[int, list[str]]] = []
    with _File(path) as file:
        reader = csv.reader(_decoded_lines(file, name), strict=True)
        while True:
            at = reader.line_num + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                where = f"{name} line {at}"
                raise bad_data(where, f"not CSV ({error})", "fix or remove the row") from error
            if values is None:
                break
            if header is None:
                header = values
            elif values:  # else a blank line
                if len(values) != len(header):
                    problem = f"{len(values)} fields, the header has {len(header)}"
                    remedy = "quote fields that hold commas or line ends"
                    raise bad_data(f"{name} line {at}", problem, remedy)
                cells.append((at, values))
                size += sum(map(len, values))
            if size >= BLOCK_BYTES:
                yield Block(name, "cells", number + 1, (header, cells), file.done)
                number, size, cells = number + len(cells), 0, []
        if cells:
            yield Block(name, "cells", number + 1, (header, cells), file.done)


def _parse_cells(block: Block) -> Iterator[Row]:
    """Yield the rows of a block of a CSV file: column name -> text."""
    header, cells = block.data
    for line, values in cells:
        yield f"{block.name} line {line}", dict(zip(header, values, strict=True))


class _File:
    """A file that is decompressed while it is read and counts the bytes that were read on disk."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("rb")
        compressed = path.suffix == ".gz"
        self._file = gzip.GzipFile(fileobj=self._raw) if compressed else self._raw

    def chunks(self, name: str, line: Callable[[], int] | None = None) -> Iterator[bytes]:
        """Yield the contents; TrainerError (65) for a damaged file names the last good `line`."""
        try:
            while chunk := self._file.read(BLOCK_BYTES):
                yield chunk
        except _UNREADABLE as error:
            where = f"{name} after line {line()}" if line else name
            raise bad_data(where, str(error), "copy the file again") from error

    @property
    def done(self) -> int:
        return self._raw.tell()

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()


def _complete_lines(file: _File, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, complete lines)."""
    number, rest = 1, [b""]

    def lines_read() -> int:
        return number - 1 + sum(part.count(b"\n") for part in rest)

    for chunk in file.chunks(name, lines_read):
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            rest.append(chunk)
            if sum(map(len, rest)) > json_list.MAX_ROW:
                problem = f"more than {json_list.MAX_ROW >> 20} MiB without a line end"
                raise bad_data(f"{name} line {number}", problem, "write one row a line")
            continue
        data = b"".join([*rest, chunk[:cut]])
        yield number, data.removeprefix(_BYTE_ORDER_MARK) if number == 1 else data
        number += data.count(b"\n")
        rest = [chunk[cut:]]
    if last := b"".join(rest):
        yield number, last.removeprefix(_BYTE_ORDER_MARK) if number == 1 else last


def _decoded_lines(file: _File, name: str) -> Iterator[str]:
    for number, data in _complete_lines(file, name):
        for line, text in enumerate(io.BytesIO(data), number):
            yield _decode(text, f"{name} line {line}")


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        problem = f"byte 0x{line[error.start]:02x} is not UTF-8"
        raise bad_data(where, problem, "save the file as UTF-8") from error


def _parse(text: str, where: str, expected: str) -> Any:
    cause: ValueError | None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem, cause = f"{error.msg} at column {error.colno}", error
    except RecursionError:
        problem, cause = "nested too deeply", None
    except ValueError as error:  # Python refuses integers of more than 4,300 digits
        problem, cause = str(error).split(";")[0], error
    raise bad_data(where, f"not JSON ({problem})", f"{expected}; fix or remove it") from cause


def _parquet_file(path: Path, name: str) -> Iterator[Block]:
    """Yield the blocks of a Parquet file."""
    import pyarrow.parquet

    size = path.stat().st_size
    with _translate_errors(name):
        # Reads pages as they are needed instead of column chunks: a row group may be gigabytes.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_PARQUET_BUFFER)
    batches = file.iter_batches(batch_size=_ROWS_PER_BLOCK, use_threads=False)
    yield from _record_batch_blocks(
        batches, name, lambda rows: size * rows // max(1, file.metadata.num_rows)
    )


def _arrow_file(path: Path, name: str) -> Iterator[Block]:
    """Yield the blocks of an Arrow file or of an Arrow stream (as `datasets` writes it)."""
    import pyarrow

    # Not memory-mapped: the pages of a mapping would count as this process's memory.
    with _translate_errors(name):
        source = pyarrow.OSFile(str(path), "rb")
    with source:
        with _translate_errors(name):
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
        found = (
            (reader.get_batch(number) for number in range(reader.num_record_batches))
            if is_file
            else iter(reader)
        )
        yield from _record_batch_blocks(found, name, lambda _: source.tell())


def _parse_batch(block: Block) -> Iterator[Row]:
    """Yield the rows of a block of a columnar file, without the keys whose value is null."""
    import pyarrow

    with pyarrow.ipc.open_stream(block.data) as reader:
        found = [row for batch in reader for row in batch.to_pylist()]
    for number, row in enumerate(found, block.first):
        # In a columnar file every row has every key; a key that the row lacked is null.
        yield f"{block.name} row {number}", _without_nulls(row)


def _record_batch_blocks(
    batches: Iterator[Any], name: str, done: Callable[[int], int]
) -> Iterator[Block]:
    """Yield record batches as blocks; `done` gives the bytes read after a number of rows."""
    import pyarrow

    number = 0
    while True:
        with _translate_errors(name):
            batch = next(batches, None)
        if batch is None:
            return
        for begin in range(0, batch.num_rows, _ROWS_PER_BLOCK):
            part = batch.slice(begin, _ROWS_PER_BLOCK)
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, part.schema) as writer:
                writer.write_batch(part)
            yield Block(
                name, "batch", number + 1, sink.getvalue().to_pybytes(), done(number + len(part))
            )
            number += len(part)


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Raise the errors of Arrow as TrainerError (65)."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise bad_data(name, f"cannot be read ({problem})", "copy the file again") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


_READERS: dict[str, Callable[[Path, str], Iterator[Block]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list_file,
    ".csv": _csv_file,
    ".parquet": _parquet_file,
    ".arrow": _arrow_file,
}
_PARSERS: dict[str, Callable[[Block], Iterator[Row]]] = {
    "lines": _parse_lines,
    "texts": _parse_texts,
    "cells": _parse_cells,
    "batch": _parse_batch,
}
