"""The tensors of the exported model, and the files that hold them.

Names, shapes, order, and whether the head is tied are derived from file headers and from the model
on the meta device, without loading the weights of the base model. Only the values of a head that
may be tied are read. The files are safetensors shards of at most 5 GB and their index.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_api.exit_codes import ExitCode
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model import folder
from finetune_trainer.model.stored_layout import Stored, StoredLayout
from finetune_trainer.run_dir import tensor_file
from finetune_trainer.run_dir.safetensors_header import INDEX, SINGLE
from finetune_trainer.run_dir.tensor_file import Entry, TensorFile

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SLICE = 1 << 22  # elements that are read, rounded and written at once: 16 MiB of fp32
SHARD_BYTES = 5_000_000_000
_METADATA = {"format": "pt"}  # transformers refuses files without it


@dataclass(frozen=True)
class Contents:
    """The tensors in the order in which they are stored.

    All that were trained have the same type. Buffers that belong to the model are copied from the
    base with their own type.
    """

    entries: list[Entry]
    dtype: torch.dtype
    untied: bool  # config.json ties the head, but training made it differ from the embedding
    layout: StoredLayout
    parameters: dict[str, list[int]]  # the shapes, with the names of transformers
    copied: dict[str, Path]  # the base's file of each tensor that was not trained

    @property
    def dtype_name(self) -> str:
        """The name of the type in config.json, such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def parameter_count(self) -> int:
        """Number of trained elements."""
        return sum(math.prod(shape) for shape in self.parameters.values())


def contents_of(base: Path, reader: CheckpointReader, dtype: torch.dtype) -> Contents:
    """Return the tensors to export.

    Raises TrainerError 78 if the parameters of the checkpoint are not those of the base model.
    """
    files = folder.weight_files(base, str(base))
    stored_in = {name: file for file in files for name in folder.tensors_in(file, str(base))}
    model = folder.model_tensors(base, str(base), stored_in)
    shapes, layout = model.parameters, model.layout
    trained = set(reader.names())
    untied = False
    if HEAD not in shapes and HEAD in trained:
        # transformers does not tie a head that the base stores with other values than the
        # embedding, even if config.json ties it. Readers that rely on config.json would silently
        # drop such a head.
        untied = not _head_equals_embedding(reader, math.prod(shapes[EMBEDDING]))
        if untied:
            shapes[HEAD] = shapes[EMBEDDING]
            head = Stored(HEAD, 0, tuple(shapes[HEAD]))
            layout = StoredLayout(layout.tensors | {HEAD: head})
        else:
            trained.discard(HEAD)
    _check_parameters(shapes, trained, reader)
    order = [name for name in stored_in if name in layout.tensors]
    copied = {n: stored_in[n] for n in order if layout.tensors[n].source not in shapes}
    types = {name: TensorFile(file).dtype(name) for name, file in copied.items()}
    entries = [Entry(n, layout.tensors[n].shape, types.get(n, dtype)) for n in order]
    return Contents(entries, dtype, untied, layout, shapes, copied)


def slices(numel: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and length of each slice of a tensor with `numel` elements."""
    for begin in range(0, numel, SLICE):
        yield begin, min(SLICE, numel - begin)


def _head_equals_embedding(reader: CheckpointReader, numel: int) -> bool:
    return all(
        torch.equal(reader.read(HEAD, "master", *piece), reader.read(EMBEDDING, "master", *piece))
        for piece in slices(numel)
    )


def _check_parameters(
    shapes: dict[str, list[int]], trained: set[str], reader: CheckpointReader
) -> None:
    problem = ""
    if trained != shapes.keys():
        different = sorted(trained ^ shapes.keys())
        problem = f"parameters of only one of them: {', '.join(different[:5])}"
    for name, shape in shapes.items():
        if not problem and reader.numel(name) != math.prod(shape):
            problem = f"{name} has {reader.numel(name)} elements, its shape is {shape}"
    if problem:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"the parameters of the checkpoint are not those of the base model: {problem}; the "
            "model folder was changed since the run began: restore its files",
        )


def write(
    model: Contents, reader: CheckpointReader, out: Path, advance: Callable[[], None]
) -> dict[str, str]:
    """Write all shards, and their index if there are several. Return the sha256 of each file.

    Only one slice of the fp32 master weights and its rounded copy are in memory at a time.
    """
    shards = _named(split(model.entries, SHARD_BYTES))
    digests = {}
    for name, entries in shards.items():
        pieces = _pieces(model, entries, reader)
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


def _named(shards: list[list[Entry]]) -> dict[str, list[Entry]]:
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


def _pieces(
    model: Contents, entries: list[Entry], reader: CheckpointReader
) -> Iterator[torch.Tensor]:
    for entry in entries:
        if file := model.copied.get(entry.name):
            yield TensorFile(file).read(entry.name, 0, entry.numel)
        else:
            yield from _rounded(entry, model.layout.tensors[entry.name], reader)


def _rounded(entry: Entry, stored: Stored, reader: CheckpointReader) -> Iterator[torch.Tensor]:
    for begin, numel in slices(entry.numel):
        master = reader.read(stored.source, "master", stored.offset + begin, numel)
        rounded = master.to(entry.dtype)
        if entry.dtype == torch.float16 and not bool(torch.isfinite(rounded).all()):
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"{entry.name} has a value that FP16 cannot hold; set output.dtype to BF16",
            )
        yield rounded
