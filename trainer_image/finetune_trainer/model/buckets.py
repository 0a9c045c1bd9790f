"""How many elements DeepSpeed sends in one collective.

It allocates such buckets whatever the model's size, and for a while holds every gradient of a
bucket twice more: as a parameter's gradient, and in the tensor that is summed over the ranks.
"""

from typing import Any

import torch

from finetune_api.memory import bucket_elements


def sizes(parameters: int) -> dict[str, int]:
    """Return the sizes of buckets in DeepSpeed's `zero_optimization`, for a model's parameters."""
    size = bucket_elements(parameters)
    return {
        "reduce_bucket_size": size,
        "allgather_bucket_size": size,
        "stage3_prefetch_bucket_size": size,
    }


def parameters_of(model: torch.nn.Module) -> int:
    """Return the number of parameters, also of those that ZeRO-3 has partitioned already."""

    def count(parameter: Any) -> int:
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    return sum(map(count, model.parameters()))
