"""Columnar files: Parquet and Arrow, read in small batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_trainer.data.block import Block, Row
from finetune_trainer.data.row_errors import bad_data

_BATCH = 512  # rows per block
_PARQUET_BUFFER = 1 << 20


def parquet_file(path: Path, name: str) -> Iterator[Block]:
    """Yield the blocks of a Parquet file."""
    import pyarrow.parquet

    size = path.stat().st_size
    with _translate_errors(name):
        # Reads pages as they are needed instead of column chunks: a row group may be gigabytes.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_PARQUET_BUFFER)
    batches = file.iter_batches(batch_size=_BATCH, use_threads=False)
    yield from _blocks(batches, name, lambda rows: size * rows // max(1, file.metadata.num_rows))


def arrow_file(path: Path, name: str) -> Iterator[Block]:
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
        yield from _blocks(found, name, lambda _: source.tell())


def parse_batch(block: Block) -> Iterator[Row]:
    """Yield the rows of a block of a columnar file, without the keys whose value is null."""
    import pyarrow

    with pyarrow.ipc.open_stream(block.data) as reader:
        found = [row for batch in reader for row in batch.to_pylist()]
    for number, row in enumerate(found, block.first):
        # In a columnar file every row has every key; a key that the row lacked is null.
        yield f"{block.name} row {number}", _without_nulls(row)


def _blocks(batches: Iterator[Any], name: str, done: Callable[[int], int]) -> Iterator[Block]:
    """Yield record batches as blocks; `done` gives the bytes read after a number of rows."""
    import pyarrow

    number = 0
    while True:
        with _translate_errors(name):
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
