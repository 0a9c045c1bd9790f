"""Readers of Parquet and Arrow files. Only the columns that can have a meaning are read.

Arrow has values that JSON and Python do not have: times beyond the year 9999, zones that do not
exist, durations, bytes. They become `Unreadable`, except for bytes that are UTF-8 text.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from finetune_trainer.data import block
from finetune_trainer.data.block import MAX_ROW, Block, Row
from finetune_trainer.data.example import bad_data
from finetune_trainer.data.json_text import Unreadable, from_pairs
from finetune_trainer.data.source_file import check_columns

_MOST_ROWS = 512  # of a batch
_BATCH_BYTES = 4 << 20  # of a batch, approximately
_PARQUET_BUFFER = 1 << 20
# Keys of tools and of their calls whose values have any form.
_FREE_FORM = ("arguments", "parameters")
NOT_READ = Unreadable("column that is not read")


@dataclass(frozen=True)
class Batch:
    """The data of a block: an Arrow stream with one record batch, without `unread` columns.

    `groups` are the row groups of its rows, as (number of the first row, number of the group).
    """

    stream: bytes
    unread: tuple[str, ...]
    groups: list[tuple[int, int]] = field(default_factory=list)

    def group_of(self, row: int) -> str:
        """Return the row group of a row, for messages."""
        found = [group for first, group in self.groups if first <= row]
        return f" (row group {found[-1]})" if found else ""


def parquet_file(path: Path, name: str, wanted: Collection[str] | None) -> Iterator[Block]:
    """Yield the blocks of a Parquet file with the `wanted` columns, or all."""
    import pyarrow.parquet

    size = path.stat().st_size
    with _translate_errors(name):
        # Reads pages as they are needed instead of column chunks: a row group may be gigabytes.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_PARQUET_BUFFER)
        columns = file.schema_arrow.names
    check_columns(columns, name)
    read = [column for column in columns if wanted is None or column in wanted]
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    starts = [1, *accumulate(groups, initial=1)][1:]

    def groups_of(first: int, count: int) -> list[tuple[int, int]]:
        begin, end = bisect_right(starts, first), bisect_right(starts, first + count - 1)
        return [(starts[group - 1], group) for group in range(begin, end + 1)]

    batches = file.iter_batches(
        _rows_per_batch(file.metadata, read), columns=read, use_threads=False
    )
    yield from _blocks(
        batches,
        name,
        tuple(column for column in columns if column not in read),
        done=lambda rows: size * rows // max(1, file.metadata.num_rows),
        groups=groups_of,
    )


def _rows_per_batch(metadata: Any, columns: list[str]) -> int:
    """Return so many rows that a batch is not much larger than `_BATCH_BYTES`."""
    wanted = [
        number
        for number in range(metadata.num_columns)
        if metadata.schema.column(number).path.split(".")[0] in columns
    ]
    most = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = sum(group.column(column).total_uncompressed_size for column in wanted)
        most = max(most, size // max(1, group.num_rows))
    return max(1, min(_MOST_ROWS, _BATCH_BYTES // most))


def arrow_file(path: Path, name: str, wanted: Collection[str] | None) -> Iterator[Block]:
    """Yield the blocks of an Arrow file or of an Arrow stream (as `datasets` writes it)."""
    import pyarrow

    # Not memory-mapped: the pages of a mapping would count as this process's memory.
    with _translate_errors(name):
        source = pyarrow.OSFile(str(path), "rb")
    with source:
        with _translate_errors(name):
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            open_it = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
            columns = open_it(source).schema.names
            check_columns(columns, name)
            read = [n for n, column in enumerate(columns) if wanted is None or column in wanted]
            source.seek(0)
            options = pyarrow.ipc.IpcReadOptions(included_fields=read)
            reader = open_it(source, options=options)
        found = (
            (reader.get_batch(number) for number in range(reader.num_record_batches))
            if is_file
            else iter(reader)
        )
        unread = tuple(column for n, column in enumerate(columns) if n not in read)
        yield from _blocks(
            found, name, unread, done=lambda _: source.tell(), groups=lambda _, __: []
        )


def parse_batch(found: Block) -> Iterator[Row]:
    """Yield the rows of a block, without the keys whose value is null."""
    import pyarrow

    data: Batch = found.data
    with pyarrow.ipc.open_stream(data.stream) as reader:
        batch = reader.read_next_batch()
    columns = {
        name: _values(column) for name, column in zip(batch.schema.names, batch, strict=True)
    }
    unread = dict.fromkeys(data.unread, NOT_READ)
    for place in range(batch.num_rows):
        number = found.first + place
        group = data.group_of(number)
        row = unread | {name: _named(values[place], group) for name, values in columns.items()}
        # In a columnar file every row has every key; a key that the row lacked is null.
        yield f"{found.name} row {number}", _without_nulls(row)


def _named(value: Any, group: str) -> Any:
    return Unreadable(value.what + group) if isinstance(value, Unreadable) else value


def _blocks(
    batches: Iterator[Any],
    name: str,
    unread: tuple[str, ...],
    *,
    done: Callable[[int], int],
    groups: Callable[[int, int], list[tuple[int, int]]],
) -> Iterator[Block]:
    """Yield record batches as blocks; `done` gives the bytes read after a number of rows."""
    import pyarrow

    number = 0
    while True:
        with _translate_errors(name):
            batch = next(batches, None)
        if batch is None:
            return
        for part in _parts(batch):
            if len(part) == 1 and part.nbytes > MAX_ROW:
                where = f"{name} row {number + 1}"
                raise bad_data(where, f"more than {MAX_ROW >> 20} MiB", "divide or remove it")
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, part.schema) as writer:
                writer.write_batch(part)
            stream = sink.getvalue().to_pybytes()
            data = Batch(stream, unread, groups(number + 1, len(part)))
            yield Block(name, "batch", number + 1, data, done(number + len(part)))
            number += len(part)


def _parts(batch: Any) -> Iterator[Any]:
    """Divide a batch until its parts have at most `_MOST_ROWS` rows and a block's bytes."""
    rows = len(batch)
    if rows > _MOST_ROWS or (rows > 1 and batch.nbytes > block.BLOCK_BYTES):
        half = min(_MOST_ROWS, rows // 2) if batch.nbytes > block.BLOCK_BYTES else _MOST_ROWS
        yield from _parts(batch.slice(0, half))
        yield from _parts(batch.slice(half))
    elif rows:
        yield batch


def _values(column: Any) -> list[Any]:
    """Return the values of a column as JSON has them."""
    if _is_plain(column.type):
        try:
            found: list[Any] = column.to_pylist()
        except UnicodeDecodeError:
            pass
        else:
            return found
    return [_value(scalar) for scalar in column]


def _is_plain(kind: Any) -> bool:
    """Return whether `to_pylist` gives the values of a type as JSON has them."""
    from pyarrow import types

    if types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return len(set(names)) == len(names) and all(
            _is_plain(kind.field(number).type) for number in range(kind.num_fields)
        )
    if types.is_dictionary(kind) or _is_list(kind):
        return _is_plain(kind.value_type)
    return _is_json(kind)


def _is_json(kind: Any) -> bool:
    from pyarrow import types

    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind)
    return bool(is_text or is_number or types.is_boolean(kind) or types.is_null(kind))


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _value(scalar: Any) -> Any:
    """Return one value of any type as JSON has it, or `Unreadable`."""
    import pyarrow
    from pyarrow import types

    kind = scalar.type
    if not scalar.is_valid:
        return None
    if types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return from_pairs([(name, _value(scalar[place])) for place, name in enumerate(names)])
    if types.is_map(kind):
        entries = scalar.values
        keys, items = (map(_value, entries.field(number)) for number in (0, 1))
        return from_pairs([(str(key), item) for key, item in zip(keys, items, strict=True)])
    if _is_list(kind):
        return [_value(item) for item in scalar.values]
    if (
        types.is_dictionary(kind)
        or types.is_union(kind)
        or isinstance(kind, pyarrow.BaseExtensionType)
    ):
        return _value(scalar.value)
    return _leaf(scalar)


def _leaf(scalar: Any) -> Any:
    from pyarrow import types

    kind = scalar.type
    try:
        if _is_json(kind):
            return scalar.as_py()
        if "binary" in str(kind):
            return scalar.as_py().decode()
        if types.is_run_end_encoded(kind) and _is_json(kind.value_type):
            return scalar.as_py()
    except UnicodeDecodeError:
        return Unreadable(f"{kind} value that is not UTF-8")
    return Unreadable(f"value of type {kind}")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Raise the errors of Arrow as TrainerError (65)."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise bad_data(name, f"cannot be read ({problem})", "copy the file again") from error


def columns_without_nulls(found: Block) -> list[str]:
    """Return the columns with arguments or parameters of tools in which a null is not kept.

    In a struct every row has every key, so that a null and a missing key are the same.
    """
    import pyarrow

    if found.kind != "batch":
        return []
    with pyarrow.ipc.open_stream(found.data.stream) as reader:
        return [field.name for field in reader.schema if _has_struct(field.type)]


def _has_struct(kind: Any) -> bool:
    """Return whether a type contains arguments or parameters of a tool as a struct."""
    from pyarrow import types

    if types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return any(
            (field.name in _FREE_FORM and types.is_struct(field.type)) or _has_struct(field.type)
            for field in fields
        )
    return _is_list(kind) and _has_struct(kind.value_type)
