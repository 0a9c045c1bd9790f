"""What a layer does with the products of queries and keys before their softmax."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scores:
    """The scores of a query: scale x product, then the soft-cap, among the keys of the window."""

    scale: float
    window: int | None = None
    """Number of keys that a query sees, itself included; None: all of its document up to itself."""
    softcap: float | None = None
    """Scores become cap x tanh(score / cap)."""
    sinks: torch.Tensor | None = None
    """[heads]: the score of one more key, whose value is 0."""
