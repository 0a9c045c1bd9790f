"""Which tensors the exported model has: names, shapes, order, and whether its head is tied.

Found out from headers and from the model built without memory: neither the base's weights nor the
checkpoint's are loaded for it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_api.exit_codes import ExitCode
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model import folder
from finetune_trainer.run_dir.tensor_file import Entry

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SLICE = 1 << 22  # elements read, rounded and written at once: 16 MiB of fp32


@dataclass(frozen=True)
class Contents:
    """The tensors in the order in which they are stored, all of one type."""

    entries: list[Entry]
    dtype: torch.dtype
    untied: bool  # config.json calls the head tied, and what was trained differs from the embedding


def of(base: Path, reader: CheckpointReader, dtype: torch.dtype) -> Contents:
    """What to export; TrainerError 78 when the checkpoint does not hold the base's parameters."""
    shapes = folder.parameters(base, str(base))
    trained = set(reader.names())
    untied = False
    if HEAD not in shapes and HEAD in trained:
        # transformers ties no head that the base stores with other values, whatever config.json
        # says; a reader that believes config.json would drop the head in silence.
        untied = not _equal(reader, math.prod(shapes[EMBEDDING]))
        if untied:
            shapes[HEAD] = shapes[EMBEDDING]
        else:
            trained.discard(HEAD)
    _compare(shapes, trained, reader)
    order = [
        name
        for file in folder.weight_files(base, str(base))
        for name in folder.tensors_in(file, str(base))
        if name in shapes
    ]
    return Contents([Entry(name, tuple(shapes[name]), dtype) for name in order], dtype, untied)


def slices(numel: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the pieces of a tensor."""
    for begin in range(0, numel, SLICE):
        yield begin, min(SLICE, numel - begin)


def _equal(reader: CheckpointReader, numel: int) -> bool:
    return all(
        torch.equal(reader.read(HEAD, "master", *piece), reader.read(EMBEDDING, "master", *piece))
        for piece in slices(numel)
    )


def _compare(shapes: dict[str, list[int]], trained: set[str], reader: CheckpointReader) -> None:
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
            f"the checkpoint does not hold the base model's parameters: {problem}; the model "
            "folder was changed since the run began: put the same files back",
        )
