"""Model FLOPs utilisation (MFU): the FLOPs that steps need, as a share of what devices can do.

Definition: PaLM, appendix B. Forward and backward passes need 6 FLOPs for each weight of a layer
and each token, 6 for each weight of the head and each trained token, and causal attention within
each document and window. Only the experts that a token is sent to count. What activation
checkpointing recomputes does not count, so it lowers the MFU.
"""

import math
import re
from collections import Counter
from typing import Any

import torch

from finetune_trainer.data.prepared import Rows
from finetune_trainer.model.experts import shape_of, weights_of_a_token

# Dense bf16 FLOP/s from the vendors' data sheets (halved if they count sparsity), by a pattern for
# the device name that torch reports. The first match counts. Other devices have no MFU.
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
    """Return the peak FLOP/s of one device, or None if it is not known."""
    found = (flops for pattern, flops in _PEAKS if re.search(pattern, device_name))
    return next(found, None)


class Utilisation:
    """Computes the utilisation for one model on devices of one kind."""

    def __init__(self, model: Any, rows: Rows, devices: int, peak: float) -> None:
        """Take the sizes of a model of transformers."""
        self._rows, self._peak = rows, devices * peak
        self._token = 6.0 * sum(weights_of_a_token(model))
        self._trained = 6.0 * math.prod(shape_of(model.lm_head.weight))
        # Two products of 2 FLOPs per element, three times with the backward pass, are 12 FLOPs for
        # a pair of tokens. Causal attention has half as many pairs as tokens squared.
        self._attention = {window: 6.0 * size for window, size in _attention_sizes(model).items()}

    @classmethod
    def known(
        cls, model: Any, rows: Rows, devices: int, device: torch.device, *, bf16: bool
    ) -> "Utilisation | None":
        """Return None if the peak of the device is not known for this precision."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        per_device = peak(name)
        return cls(model, rows, devices, per_device) if bf16 and per_device else None

    def needed(self, rows: list[int], tokens: int, trained: int) -> float:
        """Return the FLOPs of one step over these rows, on all devices together."""
        attention = sum(
            size * self._rows.squared_lengths(rows, window)
            for window, size in self._attention.items()
        )
        return self._token * tokens + self._trained * trained + attention

    def share(self, flops: float, seconds: float) -> float:
        """Return the utilisation, 0 to 1, of all devices over a time."""
        return flops / (seconds * self._peak)


def _attention_sizes(model: Any) -> Counter[int | None]:
    """Return the elements of all heads of all layers, by the window of the layers."""
    sizes: Counter[int | None] = Counter()
    everywhere = getattr(model.config, "sliding_window", None)
    for name, module in model.model.layers.named_modules():
        output = getattr(module, "o_proj", None) or getattr(module, "dense", None)
        if name.endswith("attn") and output is not None:
            sizes[getattr(module, "sliding_window", everywhere)] += output.in_features
    return sizes
