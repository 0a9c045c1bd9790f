"""The weights of a model folder, of which only the slices that are read are in memory."""

import math
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.model import folder
from finetune_trainer.model.stored_layout import StoredLayout
from finetune_trainer.run_dir.tensor_file import TensorFile

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_CHUNK = 1 << 22  # elements that are compared at once


class StoredWeights:
    """Random access to the tensors of all weight files of a model folder."""

    def __init__(self, path: Path) -> None:
        self.tensors: dict[str, Any] = {}
        """The entries of the files' headers: tensor name -> dtype, shape and data_offsets."""
        self._files: dict[str, TensorFile] = {}
        for file in folder.weight_files(path, str(path)):
            found = folder.tensors_in(file, str(path))
            self.tensors |= found
            self._files |= dict.fromkeys(found, TensorFile(file))

    def read(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Return the elements `begin` to `end` of a flattened tensor, in the type of the file."""
        return self._files[name].read(name, begin, end)

    def fill(self, buffers: dict[str, torch.Tensor], layout: StoredLayout) -> None:
        """Copy complete tensors into buffers, given by their names."""
        for name, buffer in buffers.items():
            pieces = layout.pieces(name, 0, buffer.numel())
            buffer.copy_(torch.cat([self.read(*piece) for piece in pieces]).view(buffer.shape))

    def head_equals_embedding(self) -> bool:
        """Return whether the files hold no head with other values than those of the embedding."""
        head, embedding = (self.tensors.get(name) for name in (_HEAD, _EMBEDDING))
        if head is None or embedding is None:
            return True
        if head["shape"] != embedding["shape"]:
            return False
        numel = math.prod(head["shape"])
        for begin in range(0, numel, _CHUNK):
            end = min(begin + _CHUNK, numel)
            if not torch.equal(self.read(_HEAD, begin, end), self.read(_EMBEDDING, begin, end)):
                return False
        return True
