"""The parser of safetensors headers and of weight index files, which needs no torch.

A safetensors file consists of 8 bytes header length (little-endian), a JSON header and the bytes
of the tensors. Source: the format description in the safetensors repository.
"""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
"""Names of the index of sharded weights and of weights in a single file."""
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class Header:
    """The parsed header of one file."""

    tensors: dict[str, Any]  # name -> {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}
    metadata: dict[str, str]
    data_start: int  # byte offset of the first tensor
    promised_bytes: int  # size of a complete file
    size_bytes: int  # size that the file has


def read_header(file: Path) -> Header:
    """Return the header of a file.

    Raises ValueError, whose text continues a sentence that begins with the file's name.
    """
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        prefix = os.pread(descriptor, 8, 0)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        text = os.pread(descriptor, length, 8) if 0 < length < _MAX_HEADER_BYTES else b""
    finally:
        os.close(descriptor)
    try:
        tensors: dict[str, Any] = json.loads(text)
        metadata = tensors.pop("__metadata__", {})
        ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        raise ValueError("is not a valid safetensors file") from None
    start = 8 + length
    return Header(tensors, metadata, start, start + max(ends, default=0), size)


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor that an index file lists.

    Raises ValueError, whose text continues a sentence that begins with the file's name.
    """
    try:
        return dict(json.loads(index.read_text())["weight_map"].items())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("is not a valid index file") from error


def indexed_files(index: Path) -> list[str]:
    """Return the names of the files that an index file lists, sorted. Raises ValueError."""
    try:
        return sorted(set(weight_map(index).values()))
    except TypeError as error:
        raise ValueError("is not a valid index file") from error
