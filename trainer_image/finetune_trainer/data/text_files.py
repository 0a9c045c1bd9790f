"""Readers of JSON Lines, of JSON lists and of CSV, each optionally compressed with gzip.

Bytes that are not UTF-8 become lone surrogates, which `example.valid_text` refuses in the columns
that are used.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.data import block, json_list
from finetune_trainer.data.block import MAX_ROW, Block, Row
from finetune_trainer.data.example import bad_data
from finetune_trainer.data.json_text import decode
from finetune_trainer.data.source_file import check_columns

_UNREADABLE = (EOFError, OSError, zlib.error)  # gzip raises any of them for a damaged file
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def json_lines(path: Path, name: str, *, compressed: bool) -> Iterator[Block]:
    """Yield the blocks of a file with one JSON object per line."""
    with _File(path, compressed) as file:
        for number, data in _complete_lines(file, name):
            yield Block(name, "lines", number, data, file.done)


def parse_lines(found: Block) -> Iterator[Row]:
    """Yield the rows of a block of JSON Lines; blank lines are skipped."""
    lines = found.data.split(b"\n")
    for number, line in enumerate(lines, found.first):
        if line and not line.isspace():
            where = f"{found.name} line {number}"
            goes_on = number < found.first + len(lines) - 1
            yield (
                where,
                _parse(_decoded(line), where, "every line must be one JSON object", goes_on),
            )


def json_list_file(path: Path, name: str, *, compressed: bool) -> Iterator[Block]:
    """Yield the blocks of a file that is one JSON list of objects."""
    number, texts, size = 1, [], 0
    with _File(path, compressed) as file:
        for text in json_list.elements(file.chunks(name), name):
            texts.append(text)
            size += len(text)
            if size >= block.BLOCK_BYTES:
                yield Block(name, "texts", number, texts, file.done)
                number, texts, size = number + len(texts), [], 0
        if texts:
            yield Block(name, "texts", number, texts, file.done)


def parse_texts(found: Block) -> Iterator[Row]:
    """Yield the rows of a block of a JSON list."""
    for number, text in enumerate(found.data, found.first):
        where = f"{found.name} row {number}"
        yield where, _parse(text, where, "the file must be a list of objects")


def csv_file(path: Path, name: str, *, compressed: bool) -> Iterator[Block]:
    """Yield the blocks of a CSV file whose first row is its header."""
    csv.field_size_limit(MAX_ROW)
    header: list[str] | None = None
    number, size = 0, 0
    cells: list[tuple[int, list[str]]] = []
    with _File(path, compressed) as file:
        reader = csv.reader(_lines(file, name), strict=True)
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
                # Programs write columns without a name for the number of a row, and at line ends.
                check_columns([column for column in header if column], name)
            elif values:  # else a blank line
                if len(values) != len(header):
                    problem = f"{len(values)} fields, the header has {len(header)}"
                    remedy = "quote fields that hold commas or line ends"
                    raise bad_data(f"{name} line {at}", problem, remedy)
                cells.append((at, values))
                size += sum(map(len, values))
            if size >= block.BLOCK_BYTES:
                yield Block(name, "cells", number + 1, (header, cells), file.done)
                number, size, cells = number + len(cells), 0, []
        if cells:
            yield Block(name, "cells", number + 1, (header, cells), file.done)


def parse_cells(found: Block) -> Iterator[Row]:
    """Yield the rows of a block of a CSV file: column name -> text."""
    header, cells = found.data
    for line, values in cells:
        yield f"{found.name} line {line}", dict(zip(header, values, strict=True))


class _File:
    """A file that is decompressed while it is read and counts the bytes that were read on disk."""

    def __init__(self, path: Path, compressed: bool) -> None:
        self._raw = path.open("rb")
        self._file = gzip.GzipFile(fileobj=self._raw) if compressed else self._raw

    def chunks(self, name: str, line: Callable[[], int] | None = None) -> Iterator[bytes]:
        """Yield the contents; TrainerError (65) for a damaged file names the last good `line`."""
        try:
            while chunk := self._file.read(block.BLOCK_BYTES):
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
            if sum(map(len, rest)) > MAX_ROW:
                problem = f"more than {MAX_ROW >> 20} MiB without a line end"
                raise bad_data(f"{name} line {number}", problem, "write one row a line")
            continue
        data = b"".join([*rest, chunk[:cut]])
        yield number, data.removeprefix(_BYTE_ORDER_MARK) if number == 1 else data
        number += data.count(b"\n")
        rest = [chunk[cut:]]
    if last := b"".join(rest):
        yield number, last.removeprefix(_BYTE_ORDER_MARK) if number == 1 else last


def _lines(file: _File, name: str) -> Iterator[str]:
    for _, data in _complete_lines(file, name):
        for line in io.BytesIO(data):
            yield _decoded(line)


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _parse(text: str, where: str, expected: str, goes_on: bool = False) -> Any:
    """Return the value of a JSON text; `goes_on` says whether another line follows."""
    cause: Exception | None
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        if goes_on and error.pos >= len(text.rstrip()) and text.lstrip().startswith("{"):
            problem = "a JSON object that goes on in the next line"
            remedy = "write each object on one line, or the file as one list of objects"
            raise bad_data(where, problem, remedy) from error
        problem, cause = f"{error.msg} at column {error.colno}", error
    except RecursionError:
        problem, cause = "nested too deeply", None
    raise bad_data(where, f"not JSON ({problem})", f"{expected}; fix or remove it") from cause
