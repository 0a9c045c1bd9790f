"""Reading files of rows, block by block: what a file may be, whatever its rows look like.

The reader does as little as it can; blocks are parsed by whoever they are sent to. Memory is
bounded by the block and by the longest row, never by the file.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_trainer.data import json_list
from finetune_trainer.data.refuse import bad_data
from finetune_trainer.data.source_file import kind_of, unknown_kind

_BLOCK = 1 << 20  # bytes
_BATCH = 512  # rows of a columnar file
_UNREADABLE = (EOFError, OSError, zlib.error)  # gzip raises any of them for a damaged file
_AGAIN = "copy the file again"
_PARQUET_BUFFER = 1 << 20

Row = tuple[str, Any]
"""Where it stands, for people; and what it holds."""


@dataclass(frozen=True)
class Block:
    """Some rows of one file, as they stand there.

    lines: JSON Lines as bytes. texts: JSON values. cells: header, then (line, values) each. batch:
    an Arrow stream of one record batch. `first` is the line or row number of the first, from 1;
    `done` how many bytes of the file were read so far.
    """

    name: str
    kind: Literal["lines", "texts", "cells", "batch"]
    first: int
    data: Any
    done: int

    @property
    def place(self) -> str:
        """With a number behind it, where a row stands."""
        return f"{self.name} {'line' if self.kind in ('lines', 'cells') else 'row'}"


def blocks(path: Path, name: str) -> Iterator[Block]:
    """The blocks of a file, the same ones at every call. `name` is what people call it.

    TrainerError (65) for what cannot be read.
    """
    readers: dict[str, Callable[[Path, str], Iterator[Block]]] = {
        ".jsonl": _lines,
        ".json": _texts,
        ".csv": _cells,
        ".parquet": _parquet,
        ".arrow": _arrow,
    }
    reader = readers.get(kind_of(path))
    if reader is None:
        raise unknown_kind(path, name)
    return reader(path, name)


def rows(block: Block) -> Iterator[Row]:
    """Its rows, parsed; TrainerError (65) names the row that cannot be."""
    if block.kind == "lines":
        return _parse_lines(block)
    if block.kind == "texts":
        return _parse_texts(block)
    return _parse_cells(block) if block.kind == "cells" else _parse_batch(block)


class _File:
    """A file, unzipped on the fly, that knows how far it was read on disk."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("rb")
        zipped = path.suffix == ".gz"
        self._file = gzip.GzipFile(fileobj=self._raw) if zipped else self._raw

    def chunks(self, name: str, line: Callable[[], int] | None = None) -> Iterator[bytes]:
        """The contents; a damaged file is bad data."""
        try:
            while chunk := self._file.read(_BLOCK):
                yield chunk
        except _UNREADABLE as error:
            where = f"{name} after line {line()}" if line else name
            raise bad_data(where, str(error), _AGAIN) from error

    @property
    def done(self) -> int:
        return self._raw.tell()

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()


def _whole_lines(file: _File, name: str) -> Iterator[tuple[int, bytes]]:
    """(Number of the first line, whole lines)."""
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
        yield number, data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
        number += data.count(b"\n")
        rest = [chunk[cut:]]
    if last := b"".join(rest):
        yield number, last.removeprefix(b"\xef\xbb\xbf") if number == 1 else last


def _lines(path: Path, name: str) -> Iterator[Block]:
    with _File(path) as file:
        for number, data in _whole_lines(file, name):
            yield Block(name, "lines", number, data, file.done)


def _parse_lines(block: Block) -> Iterator[Row]:
    for number, line in enumerate(block.data.split(b"\n"), block.first):
        if line and not line.isspace():
            where = f"{block.name} line {number}"
            yield where, _parse(_decode(line, where), where, "every line must be one JSON object")


def _texts(path: Path, name: str) -> Iterator[Block]:
    number, texts, size = 1, [], 0
    with _File(path) as file:
        for text in json_list.elements(file.chunks(name), name):
            texts.append(text)
            size += len(text)
            if size >= _BLOCK:
                yield Block(name, "texts", number, texts, file.done)
                number, texts, size = number + len(texts), [], 0
        if texts:
            yield Block(name, "texts", number, texts, file.done)


def _parse_texts(block: Block) -> Iterator[Row]:
    for number, text in enumerate(block.data, block.first):
        where = f"{block.name} row {number}"
        yield where, _parse(text, where, "the file must be a list of objects")


def _cells(path: Path, name: str) -> Iterator[Block]:
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
                raise bad_data(where, f"not CSV ({error})", "mend or remove the row") from error
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
            if size >= _BLOCK:
                yield Block(name, "cells", number + 1, (header, cells), file.done)
                number, size, cells = number + len(cells), 0, []
        if cells:
            yield Block(name, "cells", number + 1, (header, cells), file.done)


def _decoded_lines(file: _File, name: str) -> Iterator[str]:
    for number, data in _whole_lines(file, name):
        for line, text in enumerate(io.BytesIO(data), number):
            yield _decode(text, f"{name} line {line}")


def _parse_cells(block: Block) -> Iterator[Row]:
    header, cells = block.data
    for line, values in cells:
        yield f"{block.name} line {line}", dict(zip(header, values, strict=True))


def _parquet(path: Path, name: str) -> Iterator[Block]:
    import pyarrow.parquet

    size = path.stat().st_size
    with _arrow_errors(name):
        # Pages as they are needed, not whole column chunks: a row group may be gigabytes.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_PARQUET_BUFFER)
    batches = file.iter_batches(batch_size=_BATCH, use_threads=False)
    yield from _batches(batches, name, lambda rows: size * rows // max(1, file.metadata.num_rows))


def _arrow(path: Path, name: str) -> Iterator[Block]:
    import pyarrow

    # Not mapped: pages of a mapping would count as this process's memory.
    with _arrow_errors(name):
        source = pyarrow.OSFile(str(path), "rb")
    with source:
        with _arrow_errors(name):
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
        found = (
            (reader.get_batch(number) for number in range(reader.num_record_batches))
            if is_file
            else iter(reader)
        )
        yield from _batches(found, name, lambda _: source.tell())


def _batches(batches: Iterator[Any], name: str, done: Callable[[int], int]) -> Iterator[Block]:
    import pyarrow

    number = 0
    while True:
        with _arrow_errors(name):
            batch = next(batches, None)
        if batch is None:
            return
        for begin in range(0, batch.num_rows, _BATCH):
            part = batch.slice(begin, _BATCH)
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, part.schema) as writer:
                writer.write_batch(part)
            yield Block(
                name, "batch", number + 1, sink.getvalue().to_pybytes(), done(number + len(part))
            )
            number += len(part)


class _arrow_errors:  # noqa: N801 - used as a function
    """Turns what Arrow raises into bad data."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import pyarrow

        if isinstance(error, pyarrow.ArrowException | OSError | ValueError):
            problem = (str(error).splitlines() or ["damaged"])[0]
            raise bad_data(self._name, f"cannot be read ({problem})", _AGAIN) from error


def _parse_batch(block: Block) -> Iterator[Row]:
    import pyarrow

    with pyarrow.ipc.open_stream(block.data) as reader:
        found = [row for batch in reader for row in batch.to_pylist()]
    for number, row in enumerate(found, block.first):
        # Every row of a column has every key: what a row lacks is null.
        yield f"{block.name} row {number}", _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


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
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        problem, cause = str(error).split(";")[0], error
    raise bad_data(where, f"not JSON ({problem})", f"{expected}; mend or remove it") from cause
