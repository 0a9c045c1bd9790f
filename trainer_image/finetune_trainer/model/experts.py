"""The experts of a model, and the weights that a token is multiplied with."""

import math
from collections.abc import Iterator
from typing import Any


def expert_count(name: str, module: Any) -> int | None:
    """Return the number of experts that a module of transformers holds; None for all others."""
    count = getattr(module, "num_experts", None) if name.endswith("experts") else None
    return count if isinstance(count, int) else None


def weights_of_a_token(model: Any) -> Iterator[float]:
    """Yield the number of weights of each matrix of the layers that a token is multiplied with.

    Of the experts of a layer, these are the weights of as many as a token is sent to.
    """
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    for name, module in model.model.layers.named_modules():
        experts = expert_count(name, module)
        share = chosen / experts if chosen and experts else 1.0
        for key, parameter in module.named_parameters(recurse=False):
            shape = shape_of(parameter)
            if len(shape) > 1 and not key.endswith("bias"):
                yield share * math.prod(shape)


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Return the shape of a parameter, also if ZeRO-3 has partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
