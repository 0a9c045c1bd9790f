"""Writing a safetensors file piece by piece: no second copy, no long silence, plain OSErrors.

The library's own `save_file` wants every tensor at once, says nothing until all is written, and
raises an exception of its own for a full disk. Reading stays the library's business.
Format: 8 bytes header length (little-endian), JSON header, the tensors' bytes in its order
(https://huggingface.co/docs/safetensors#format).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

_CHUNK = 1 << 24
_SYNC_EVERY = 1 << 26  # bytes; the last fsync never has more than this to do
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


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
    digest = xxhash.xxh3_128()
    with path.open("wb", buffering=0) as file:
        writer = _Writer(file, advance, digest)
        writer.write(memoryview(_header(tensors, metadata)))
        for tensor in tensors.values():
            writer.write(_bytes(tensor))
        writer.sync()
    return digest.hexdigest()


class _Writer:
    def __init__(
        self, file: BinaryIO, advance: Callable[[], None], digest: xxhash.xxh3_128
    ) -> None:
        self._file, self._advance, self._digest = file, advance, digest
        self._unsynced = 0

    def write(self, data: memoryview) -> None:
        for begin in range(0, len(data), _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            self._digest.update(chunk)
            self._unsynced += len(chunk)
            while chunk:  # a raw write may take less than it is given
                chunk = chunk[self._file.write(chunk) :]
            if self._unsynced >= _SYNC_EVERY:
                self.sync()
            self._advance()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0


def _header(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Of a copy on the host where there is none yet; views of flat fp32 buffers need none."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    array: Any = flat.numpy()  # a buffer, which its annotations do not say on Python 3.11
    return memoryview(array)
