"""Reads slices of parameters from a checkpoint of any world size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_api.storage import Manifest
from finetune_trainer.run_dir.tensor_file import TensorFile


@dataclass(frozen=True)
class _Piece:
    offset: int
    numel: int
    file: str
    key: str


class CheckpointReader:
    """Random access to ranges of parameters. Only what is read is in memory."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._files: dict[str, TensorFile] = {}
        self._pieces: dict[tuple[str, str], list[_Piece]] = {}
        self.adam_step = 0
        for entry in manifest.files:
            if entry.path.endswith(".safetensors"):
                self._index(folder, entry.path)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.offset)

    def _index(self, folder: Path, name: str) -> None:
        file = TensorFile(folder / name)
        self._files[name] = file
        self.adam_step = max(self.adam_step, int(file.metadata.get("adamStep", 0)))
        for entry in file.entries:
            address, kind = entry.name.rsplit("|", 1)
            parameter, offset = address.rsplit("@", 1)
            piece = _Piece(int(offset), entry.numel, name, entry.name)
            self._pieces.setdefault((parameter, kind), []).append(piece)

    def names(self) -> list[str]:
        """Return the names of all parameters in the checkpoint."""
        return sorted({parameter for parameter, _ in self._pieces})

    def numel(self, parameter: str) -> int:
        """Return how many elements of a parameter the checkpoint holds."""
        return sum(piece.numel for piece in self._pieces.get((parameter, "master"), []))

    def read(self, parameter: str, kind: str, offset: int, numel: int) -> torch.Tensor:
        """Return elements of a flattened parameter as fp32 [numel].

        Raises ValueError if some are missing.
        """
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
                slice_ = (low - piece.offset, high - piece.offset)
                yield low - offset, self._files[piece.file].read(piece.key, *slice_)
