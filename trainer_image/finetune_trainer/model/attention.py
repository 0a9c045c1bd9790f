"""Attention over packed rows: each document attends to itself only.

The attention function is registered with transformers as `finetune_segments`. The boundaries of the
documents are passed explicitly, as cumulative lengths: the library's own detection of packed rows
leaks across documents (logits off by more than 1) whenever a cache or a mask is present.
"""

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from finetune_trainer.model.fast_imports import model_classes

NAME = "finetune_segments"
_FLASH = (torch.bfloat16, torch.float16)  # all that its kernels support; fp32 uses SDPA


def register() -> None:
    """Register the function with transformers, as a value of `attn_implementation`."""
    model_classes()
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, segments_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def segments_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each document, as [1, tokens, heads, size].

    query is [1, heads, tokens, size], key and value are [1, kv heads, tokens, size], cu_seq_lens_q
    is [documents + 1] int32 on the same device. Raises ValueError for what is not implemented;
    preparation has refused such models (exactness.py).
    """
    if attention_mask is not None:
        raise ValueError("packed rows need the lengths of their documents and no attention mask")
    if problem := unsupported(max_length_q, **options):
        raise ValueError(problem)
    if query.is_cuda and query.dtype in _FLASH:
        return _varlen(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
    outputs = []
    bounds = cu_seq_lens_q.tolist()
    for begin, end in pairwise(bounds):
        part = slice(begin, end)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, part],
                key[:, :, part],
                value[:, :, part],
                scale=scaling,
                is_causal=True,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def unsupported(
    longest: int,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    sinks: Any = None,
    dropout: float = 0.0,
    **_: Any,
) -> str | None:
    """Return why attention with these options of transformers is not implemented, or None.

    `longest` is the number of tokens of the longest document: a window that holds it has no effect.
    """
    if sliding_window is not None and longest > sliding_window:
        return f"its attention has a window of {sliding_window} tokens, and rows have {longest}"
    if softcap is not None:
        return f"its attention has a soft-cap ({softcap})"
    if s_aux is not None or sinks is not None:
        return "its attention has sinks"
    if dropout:
        return f"its attention has dropout ({dropout})"
    return None


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    bounds: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    def flat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[0].transpose(0, 1)

    output: Any = varlen_attn(
        flat(query),
        flat(key),
        flat(value),
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    attended: torch.Tensor = output[None]
    return attended


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask."""
