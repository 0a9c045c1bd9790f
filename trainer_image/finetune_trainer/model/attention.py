"""Attention over packed rows: each document attends to itself only.

It is registered with transformers as `finetune_segments`, and for models that are trained one
document at a time as `finetune_document`; each has a variant without fused kernels. The boundaries
of packed documents are passed explicitly, as cumulative lengths: the library's own detection of
packed rows leaks across documents (logits off by more than 1) whenever a cache or a mask is
present.

On GPUs the kernels of flash attention compute it (flash_attention.py). All else is computed in
plain torch (document_attention.py): CPUs, fp32, and what those kernels do not have.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch

from finetune_api.progress import ForwardPass
from finetune_trainer.model import document_attention, flash_attention
from finetune_trainer.model.fast_imports import model_classes
from finetune_trainer.model.scores import Scores

NAME, PLAIN = "finetune_segments", "finetune_segments_plain"
DOCUMENT, PLAIN_DOCUMENT = "finetune_document", "finetune_document_plain"


def register() -> None:
    """Register the functions with transformers, as values of `attn_implementation`."""
    model_classes()
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    for name, function in FUNCTIONS.items():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _no_mask)


def segments_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    fused: bool = True,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each document, as [1, tokens, heads, size].

    query is [1, heads, tokens, size], key and value are [1, kv heads, tokens, size], cu_seq_lens_q
    is [documents + 1] int32 on the same device, s_aux is [heads]: the score of a sink for each
    head. `fused` allows flash attention. Raises ValueError for what is not implemented; preparation
    has refused such models (exactness.py).
    """
    if attention_mask is not None:
        raise ValueError("packed rows need the lengths of their documents and no attention mask")
    if dropout:
        raise ValueError(f"attention with dropout ({dropout}) is not supported")
    chunk = _chunk(module)
    if chunk is not None and chunk < max_length_q:
        cu_seq_lens_q, max_length_q = _cut(cu_seq_lens_q, chunk), chunk
    if sliding_window is not None and sliding_window >= max_length_q:
        sliding_window = None  # no document is longer
    scores = Scores(scaling or query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    if fused and flash_attention.computes(query, value, scores):
        return flash_attention.attend(query, key, value, scores, cu_seq_lens_q, max_length_q), None
    return document_attention.attend(query, key, value, scores, cu_seq_lens_q.tolist()), None


def _chunk(module: torch.nn.Module) -> int | None:
    """Return the size of the chunks to which a layer of Llama 4 limits its attention, or None."""
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    if not kinds or kinds[module.layer_idx] != "chunked_attention":
        return None
    size: int = module.config.attention_chunk_size  # type: ignore[union-attr, assignment]
    return size


def _cut(bounds: torch.Tensor, size: int) -> torch.Tensor:
    """Return the bounds of consecutive chunks, which begin anew in each document."""
    cut = [0]
    for begin, end in pairwise(bounds.tolist()):
        cut += [*range(begin + size, end, size), end]
    return torch.tensor(cut, dtype=bounds.dtype, device=bounds.device)


def one_document_attention(
    module: torch.nn.Module, query: torch.Tensor, *others: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Return causal attention where the input is one document, whose bounds are not passed on."""
    length = query.shape[2]
    bounds = torch.arange(0, length + 1, length, dtype=torch.int32, device=query.device)
    known = {"cu_seq_lens_q": bounds, "max_length_q": length}
    return segments_attention(module, query, *others, **options | known)


def implementation(forward_pass: ForwardPass, *, fused: bool = True) -> str:
    """Return the name under which the attention of a model is registered."""
    if forward_pass == "Rows":
        return NAME if fused else PLAIN
    return DOCUMENT if fused else PLAIN_DOCUMENT


FUNCTIONS: dict[str, Any] = {
    NAME: segments_attention,
    PLAIN: partial(segments_attention, fused=False),
    DOCUMENT: one_document_attention,
    PLAIN_DOCUMENT: partial(one_document_attention, fused=False),
}


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask."""
