"""safetensors files piece by piece: no second copy, no long silence, plain OSErrors.

The library's own `save_file` wants every tensor at once, says nothing until all is written, and
raises an exception of its own for a full disk; its reader maps the file, so that whatever was read
counts as the process's memory. Here a tensor is written and read in slices.
Format: 8 bytes header length (little-endian), JSON header, the tensors' bytes in its order
(https://huggingface.co/docs/safetensors#format).
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

_CHUNK = 1 << 24
_SYNC_EVERY = 1 << 26  # bytes; the last fsync never has more than this to do
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_TORCH = {text: dtype for dtype, text in _DTYPES.items()}


class Digest(Protocol):
    """What hashlib and xxhash have in common."""

    def update(self, data: Any, /) -> None:
        """Take in bytes."""

    def hexdigest(self) -> str:
        """Of all bytes so far."""


@dataclass(frozen=True)
class Entry:
    """What the header says about one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize


def write(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    advance: Callable[[], None],
) -> str:
    """Write and sync a file of fp32 or bf16 tensors; returns the xxh3-128 of what was written.

    `advance` is called for every 16 MiB. OSError as the file system raises it; what was written
    until then stays.
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
    """The same from consecutive slices of the tensors, made while they are written.

    Only one piece is in memory at a time. Returns the hex digest of the whole file; ValueError when
    the pieces are not as many bytes as the entries promise.
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
            while chunk:  # a raw write may take less than it is given
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
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Of a copy on the host where there is none yet; views of flat fp32 buffers need none."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    array: Any = flat.numpy()  # a buffer, which its annotations do not say on Python 3.11
    return memoryview(array)


class TensorFile:
    """Slices of the tensors of one file, read and not mapped."""

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
        """What is in it, in the header's order."""
        return [entry for entry, _ in self._entries.values()]

    def read(self, name: str, begin: int, end: int) -> torch.Tensor:
        """[end - begin]: elements of a flattened tensor; OSError when the file ends before."""
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
