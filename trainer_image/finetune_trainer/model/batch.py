"""A micro-batch as tensors: rows laid end to end, documents known by their lengths."""

from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.data.rows import Row


@dataclass(frozen=True)
class Batch:
    """One forward pass; no padding.

    tokens, positions [1, tokens] int64; bounds [documents + 1] int32; longest: tokens of the
    longest document; predict [trained] int64: positions whose next token is trained; targets
    [trained] int64: those next tokens.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    bounds: torch.Tensor
    longest: int
    predict: torch.Tensor
    targets: torch.Tensor


def make(rows: list[Row], device: torch.device) -> Batch:
    """Tensors of some rows. A document's first token is never trained: no target crosses."""
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.int64)
    trained = np.concatenate([row.trained for row in rows]).astype(bool)
    lengths = np.concatenate([row.segments for row in rows]).astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(len(tokens)) - np.repeat(bounds[:-1], lengths)
    wanted = np.flatnonzero(trained)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return Batch(
        tokens=tensor(tokens[None]),
        positions=tensor(positions[None]),
        bounds=tensor(bounds.astype(np.int32)),
        longest=int(lengths.max()),
        predict=tensor(wanted - 1),
        targets=tensor(tokens[wanted]),
    )
