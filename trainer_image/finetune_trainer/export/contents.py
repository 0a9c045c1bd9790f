"""The tensors of the exported model: names, shapes, order, and whether its head is tied.

They are derived from file headers and from the model on the meta device, without loading the
weights of the base model. Only the values of a head that may be tied are read.
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
SLICE = 1 << 22  # elements that are read, rounded and written at once: 16 MiB of fp32


@dataclass(frozen=True)
class Contents:
    """The tensors in the order in which they are stored. All have the same type."""

    entries: list[Entry]
    dtype: torch.dtype
    untied: bool  # config.json ties the head, but training made it differ from the embedding

    @property
    def dtype_name(self) -> str:
        """The name of the type in config.json, such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")


def of(base: Path, reader: CheckpointReader, dtype: torch.dtype) -> Contents:
    """Return the tensors to export.

    Raises TrainerError 78 if the parameters of the checkpoint are not those of the base model.
    """
    shapes = folder.parameters(base, str(base))
    trained = set(reader.names())
    untied = False
    if HEAD not in shapes and HEAD in trained:
        # transformers does not tie a head that the base stores with other values than the
        # embedding, even if config.json ties it. Readers that rely on config.json would silently
        # drop such a head.
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
    """Yield the offset and length of each slice of a tensor with `numel` elements."""
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
            f"the parameters of the checkpoint are not those of the base model: {problem}; the "
            "model folder was changed since the run began: restore its files",
        )
