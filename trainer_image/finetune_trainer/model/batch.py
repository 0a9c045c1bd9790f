"""A micro-batch as tensors: rows are concatenated, documents are given by their lengths."""

from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.data.rows import Row


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass, without padding."""

    tokens: torch.Tensor
    """[1, tokens] int64."""
    positions: torch.Tensor
    """[1, tokens] int64: position of each token in its document."""
    bounds: torch.Tensor
    """[documents + 1] int32: cumulative lengths of the documents."""
    longest: int
    """Number of tokens of the longest document."""
    predict: torch.Tensor
    """[trained] int64: indices of the tokens whose next token carries loss."""
    targets: torch.Tensor
    """[trained] int64: those next tokens."""


def make(rows: list[Row], device: torch.device) -> Batch:
    """Return the tensors of some rows.

    No target crosses a boundary, because the first token of a document never carries loss.
    """
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.int64)
    trained = np.concatenate([row.trained for row in rows]).astype(bool)
    lengths = np.concatenate([row.segments for row in rows]).astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(len(tokens)) - np.repeat(bounds[:-1], lengths)
    carries_loss = np.flatnonzero(trained)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return Batch(
        tokens=tensor(tokens[None]),
        positions=tensor(positions[None]),
        bounds=tensor(bounds.astype(np.int32)),
        longest=int(lengths.max()),
        predict=tensor(carries_loss - 1),
        targets=tensor(tokens[carries_loss]),
    )
