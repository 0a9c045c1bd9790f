"""Reads files of data of any type: `blocks` cuts a file into blocks, `rows` parses a block.

The process that reads a file does as little as possible: blocks are parsed in the processes that
they are sent to. Memory is bounded by the block size and the longest row, not by the file.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from finetune_trainer.data import columnar_files, text_files
from finetune_trainer.data.block import Block, Row
from finetune_trainer.data.file_type import file_type


def blocks(path: Path, name: str, wanted: Collection[str] | None = None) -> Iterator[Block]:
    """Yield the blocks of a file, the same ones at every call.

    `name` is the file's name in messages. Of a columnar file only the `wanted` columns are read.
    Raises TrainerError (65) if the file cannot be read.
    """
    found = file_type(path, name)
    if found.kind == ".parquet":
        return columnar_files.parquet_file(path, name, wanted)
    if found.kind == ".arrow":
        return columnar_files.arrow_file(path, name, wanted)
    return _TEXT_READERS[found.kind](path, name, compressed=found.compressed)


def rows(block: Block) -> Iterator[Row]:
    """Yield the parsed rows of a block; TrainerError (65) names a row that cannot be parsed."""
    return _PARSERS[block.kind](block)


_TEXT_READERS: dict[str, Callable[..., Iterator[Block]]] = {
    ".jsonl": text_files.json_lines,
    ".json": text_files.json_list_file,
    ".csv": text_files.csv_file,
}
_PARSERS: dict[str, Callable[[Block], Iterator[Row]]] = {
    "lines": text_files.parse_lines,
    "texts": text_files.parse_texts,
    "cells": text_files.parse_cells,
    "batch": columnar_files.parse_batch,
}
