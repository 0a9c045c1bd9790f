"""Reads files of data of any type: `blocks` cuts a file into blocks, `rows` parses a block.

The process that reads a file does as little as possible: blocks are parsed in the processes that
they are sent to. Memory is bounded by the block size and the longest row, not by the file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from finetune_trainer.data import read_columnar, read_text
from finetune_trainer.data.block import Block, Row
from finetune_trainer.data.source_file import kind_of, unknown_kind

_READERS: dict[str, Callable[[Path, str], Iterator[Block]]] = {
    ".jsonl": read_text.json_lines,
    ".json": read_text.json_list_file,
    ".csv": read_text.csv_file,
    ".parquet": read_columnar.parquet_file,
    ".arrow": read_columnar.arrow_file,
}
_PARSERS: dict[str, Callable[[Block], Iterator[Row]]] = {
    "lines": read_text.parse_lines,
    "texts": read_text.parse_texts,
    "cells": read_text.parse_cells,
    "batch": read_columnar.parse_batch,
}


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
