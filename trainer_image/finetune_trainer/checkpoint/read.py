"""Reading slices of parameters out of a checkpoint, whatever world wrote it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from finetune_api.storage import Manifest


@dataclass(frozen=True)
class _Piece:
    offset: int
    numel: int
    file: str
    key: str


class CheckpointReader:
    """Random access to (parameter, kind, range); the files are mapped, not loaded."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._files: dict[str, Any] = {}
        self._pieces: dict[tuple[str, str], list[_Piece]] = {}
        self.adam_step = 0
        for entry in manifest.files:
            if entry.path.endswith(".safetensors"):
                self._index(folder, entry.path)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.offset)

    def _index(self, folder: Path, name: str) -> None:
        file = safe_open(str(folder / name), framework="pt")
        self._files[name] = file
        self.adam_step = max(self.adam_step, int((file.metadata() or {}).get("adamStep", 0)))
        for key in file.keys():  # noqa: SIM118 - no mapping
            address, kind = key.rsplit("|", 1)
            parameter, offset = address.rsplit("@", 1)
            numel = file.get_slice(key).get_shape()[0]
            piece = _Piece(int(offset), numel, name, key)
            self._pieces.setdefault((parameter, kind), []).append(piece)

    def names(self) -> list[str]:
        """Parameters in the checkpoint."""
        return sorted({parameter for parameter, _ in self._pieces})

    def read(self, parameter: str, kind: str, offset: int, numel: int) -> torch.Tensor:
        """fp32 [numel]: elements of the flattened parameter; ValueError when some are missing."""
        result = torch.empty(numel, dtype=torch.float32)
        filled = 0
        for begin, part in self._overlaps(parameter, kind, offset, numel):
            result[begin : begin + len(part)] = part
            filled += len(part)
        if filled != numel:
            raise ValueError(f"{parameter} {kind}: {filled} of {numel} elements from {offset}")
        return result

    def _overlaps(
        self, parameter: str, kind: str, offset: int, numel: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        for piece in self._pieces.get((parameter, kind), []):
            low, high = max(offset, piece.offset), min(offset + numel, piece.offset + piece.numel)
            if low < high:
                tensor = self._files[piece.file].get_slice(piece.key)
                yield low - offset, tensor[low - piece.offset : high - piece.offset]
