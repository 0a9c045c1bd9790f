"""The weight files of the exported model: safetensors shards of at most 5 GB and their index."""

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
_METADATA = {"format": "pt"}  # transformers refuses files without it


def write(
    model: Contents, reader: CheckpointReader, out: Path, advance: Callable[[], None]
) -> dict[str, str]:
    """Write all shards, and their index if there are several. Return the sha256 of each file.

    Only one slice of the fp32 master weights and its rounded copy are in memory at a time.
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
    """Divide tensors into consecutive shards of at most `most` bytes.

    A single tensor with more bytes becomes one shard.
    """
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
    """Return the shards by file name, in the naming scheme of transformers."""
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def index(shards: dict[str, list[Entry]]) -> dict[str, object]:
    """Return the index, which names the file of each tensor. Readers ignore all other tensors."""
    total = sum(entry.nbytes for shard in shards.values() for entry in shard)
    weight_map = {entry.name: file for file, shard in shards.items() for entry in shard}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _rounded(
    entries: list[Entry], reader: CheckpointReader, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    for entry in entries:
        for begin, numel in slices(entry.numel):
            yield reader.read(entry.name, "master", begin, numel).to(dtype)
