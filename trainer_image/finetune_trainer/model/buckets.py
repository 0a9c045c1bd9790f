"""How many elements DeepSpeed sends in one collective.

It allocates such buckets whatever the model's size, and for a while holds every gradient of a
bucket twice more: as a parameter's gradient, and in the tensor that is summed over the ranks.
"""

from typing import Any

import torch

_SHARE = 16  # buckets in a model; more save little memory and cost latency
_SMALLEST = 1 << 20  # elements; Hugging Face's "auto" makes tiny collectives
_LARGEST = 200_000_000  # elements; larger collectives are not faster


def sizes(parameters: int) -> dict[str, int]:
    """Return the sizes of buckets in DeepSpeed's `zero_optimization`, for a model's parameters."""
    # ZeRO-1 and 2 need an even number.
    size = min(max(parameters // _SHARE, _SMALLEST), _LARGEST) // 2 * 2
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
