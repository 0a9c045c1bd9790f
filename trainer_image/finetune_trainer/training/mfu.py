"""Model FLOPs utilisation: what steps need, of what their devices could do (PaLM, appendix B).

Needed are, forward and backward, 6 FLOPs for each weight of a layer and each token, the same of the
head for each trained token, and causal attention within each document. What activation
checkpointing computes again is not needed, so it lowers the figure.
"""

import re
from typing import Any

import torch

from finetune_trainer.data.rows import Rows

# Dense bf16 FLOP/s from the vendors' data sheets (halved where they count sparsity), by the name
# that torch gives to the device; the first that fits. A device that is not here has no MFU.
_PEAKS = (
    (r"H100 PCIe", 756e12),
    (r"H100 NVL", 835e12),
    (r"\b(H100|H200|H800|GH200)\b", 989e12),
    (r"\bB200\b", 2250e12),
    (r"\b(A100|A800)\b", 312e12),
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
    (r"\bMI300X\b", 1307e12),
)


def peak(device_name: str) -> float | None:
    """FLOP/s of one device at most, None where that is not known."""
    found = (flops for pattern, flops in _PEAKS if re.search(pattern, device_name))
    return next(found, None)


class Utilisation:
    """Of one model on devices of one kind."""

    def __init__(self, shape: Any, rows: Rows, devices: int, peak: float) -> None:
        """`shape`: the transformers configuration, of an architecture that `lm` names."""
        self._rows, self._most = rows, devices * peak
        heads, hidden = shape.num_attention_heads, shape.hidden_size
        size = getattr(shape, "head_dim", None) or hidden // heads
        own, shared = heads * size, shape.num_key_value_heads * size
        layer = hidden * (2 * own + 2 * shared) + 3 * hidden * shape.intermediate_size
        self._token: float = 6.0 * shape.num_hidden_layers * layer
        self._trained: float = 6.0 * shape.vocab_size * hidden
        # Scores and their use, 2 FLOPs each, three times with the backward pass: 12 for a pair of
        # tokens, of which causal attention has half as many as the document has tokens squared.
        self._square: float = 6.0 * shape.num_hidden_layers * own

    @classmethod
    def known(
        cls, shape: Any, rows: Rows, devices: int, device: torch.device, *, bf16: bool
    ) -> "Utilisation | None":
        """None where the devices' peak is not known, or is not that of the precision."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        most = peak(name)
        return cls(shape, rows, devices, most) if bf16 and most else None

    def needed(self, rows: list[int], tokens: int, trained: int) -> float:
        """FLOPs of one step over these rows, on all devices together."""
        squares = self._rows.squared_lengths(rows)
        return self._token * tokens + self._trained * trained + self._square * squares

    def share(self, flops: float, seconds: float) -> float:
        """0 to 1."""
        return flops / (seconds * self._most)
