"""The weights: safetensors shards of at most 5 GB, written slice by slice."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.export.contents import Contents, slices
from finetune_trainer.run_dir import tensor_file
from finetune_trainer.run_dir.safetensors_header import INDEX, SINGLE
from finetune_trainer.run_dir.tensor_file import Entry

SHARD_BYTES = 5_000_000_000
# transformers refuses a file that does not say so.
_METADATA = {"format": "pt"}


def write(
    model: Contents, reader: CheckpointReader, out: Path, advance: Callable[[], None]
) -> dict[str, str]:
    """Write all shards and, when there are several, their index; file -> sha256.

    In memory is one slice of the fp32 master and its rounded copy, whatever the model's size.
    """
    shards = named(split(model.entries, SHARD_BYTES))
    digests = {}
    for name, entries in shards.items():
        pieces = _rounded(entries, reader, model.dtype)
        digests[name] = tensor_file.write_pieces(
            out / name, entries, pieces, _METADATA, advance, hashlib.sha256()
        )
    if len(shards) > 1:
        (out / INDEX).write_text(json.dumps(index(shards), indent=2))
    return digests


def split(entries: list[Entry], most: int) -> list[list[Entry]]:
    """In order, each shard of at most `most` bytes unless one tensor alone has more."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def named(shards: list[list[Entry]]) -> dict[str, list[Entry]]:
    """As transformers names them: one file, or numbered ones."""
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def index(shards: dict[str, list[Entry]]) -> dict[str, object]:
    """Where each tensor is; readers ignore files and tensors that it does not name."""
    total = sum(entry.nbytes for shard in shards.values() for entry in shard)
    weight_map = {entry.name: file for file, shard in shards.items() for entry in shard}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _rounded(
    entries: list[Entry], reader: CheckpointReader, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    for entry in entries:
        for begin, numel in slices(entry.numel):
            yield reader.read(entry.name, "master", begin, numel).to(dtype)
