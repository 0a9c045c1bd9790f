"""A reader and writer of safetensors files that needs only a slice of a tensor in memory.

The safetensors library is not used for this, because its writer needs all tensors in memory at
once, computes no checksum while it writes, reports no progress and hides OSErrors; and its reader
maps the file, so that everything that was read counts as memory of the process.
Format: 8 bytes header length (little-endian), JSON header, the tensors' bytes in its order
(https://huggingface.co/docs/safetensors#format). Headers are parsed by `safetensors_header`.
"""

import json
import math
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
import xxhash

from finetune_trainer.run_dir.safetensors_header import read_header

_CHUNK = 1 << 24  # bytes that are written at once
_SYNC_EVERY = 1 << 26  # bytes; bounds the duration of each fsync
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# Base models may have tensors of other types, which are read only.
_TORCH = {text: dtype for dtype, text in _DTYPES.items()} | {
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Digest(Protocol):
    """The interface that digests of hashlib and xxhash share."""

    def update(self, data: Any, /) -> None:
        """Add bytes to the digest."""

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far in hex."""


@dataclass(frozen=True)
class Entry:
    """The name, shape and type of one tensor in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.numel * self.dtype.itemsize


def write(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    advance: Callable[[], None],
) -> str:
    """Write and sync a file of fp32, bf16 or fp16 tensors. Return the xxh3-128 of the file in hex.

    Calls `advance` after every 16 MiB. Raises the OSErrors of the file system, and leaves what was
    written until then.
    """
    entries = [Entry(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    return write_pieces(path, entries, tensors.values(), metadata, advance, xxhash.xxh3_128())


def write_pieces(
    path: Path,
    entries: list[Entry],
    pieces: Iterable[torch.Tensor],
    metadata: dict[str, str],
    advance: Callable[[], None],
    digest: Digest,
) -> str:
    """Write and sync a file from consecutive slices of its tensors. Return its digest in hex.

    `pieces` is consumed while the file is written, so that only one piece is in memory at a time.
    Raises ValueError if the pieces have more or fewer bytes than the entries promise.
    """
    with path.open("wb", buffering=0) as file:
        writer = _Writer(file, advance, digest)
        header = _header(entries, metadata)
        writer.write(memoryview(header))
        for piece in pieces:
            writer.write(_bytes(piece))
        writer.sync()
    promised = len(header) + sum(entry.nbytes for entry in entries)
    if writer.written != promised:
        raise ValueError(f"{path.name}: {writer.written} bytes written, {promised} promised")
    return digest.hexdigest()


class _Writer:
    def __init__(self, file: BinaryIO, advance: Callable[[], None], digest: Digest) -> None:
        self._file, self._advance, self._digest = file, advance, digest
        self._unsynced = 0
        self.written = 0

    def write(self, data: memoryview) -> None:
        for begin in range(0, len(data), _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            self._digest.update(chunk)
            self._unsynced += len(chunk)
            self.written += len(chunk)
            while chunk:  # a raw write may accept only a part of its data
                chunk = chunk[self._file.write(chunk) :]
            if self._unsynced >= _SYNC_EVERY:
                self.sync()
            self._advance()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0


def _header(entries: list[Entry], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": _DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the first tensor
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor. Copies only tensors on a device and non-contiguous ones."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    array: Any = flat.numpy()  # implements the buffer protocol; Python 3.11's types lack that
    return memoryview(array)


class TensorFile:
    """Reads slices of the tensors of one file without mapping it."""

    def __init__(self, path: Path) -> None:
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        header = read_header(path)
        self.metadata, self._begin = header.metadata, header.data_start
        self._entries = {
            name: (Entry(name, tuple(t["shape"]), _TORCH[t["dtype"]]), t["data_offsets"][0])
            for name, t in header.tensors.items()
        }

    @property
    def entries(self) -> list[Entry]:
        """The tensors of the file, in the order of the header."""
        return [entry for entry, _ in self._entries.values()]

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor."""
        return self._entries[name][0].dtype

    def read(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Return the elements `begin` to `end` of a flattened tensor. Shape: [end - begin].

        Raises OSError if the file is too short.
        """
        entry, offset = self._entries[name]
        result = torch.empty(end - begin, dtype=entry.dtype)
        at = self._begin + offset + begin * entry.dtype.itemsize
        left = _bytes(result)
        while left:
            taken = os.preadv(self._descriptor, [left], at)
            if not taken:
                raise OSError(f"{self._path.name}: {name} is cut short")
            left, at = left[taken:], at + taken
        return result
