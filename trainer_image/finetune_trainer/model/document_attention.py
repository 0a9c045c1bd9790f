"""Attention in plain torch, one document after the other, on any device.

Memory stays linear in the length of a document: where scaled_dot_product_attention cannot do what a
layer needs, blocks of queries are computed one by one, and again in the backward pass.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from finetune_trainer.model.scores import Scores

_BLOCK = 512  # queries


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores, bounds: list[int]
) -> torch.Tensor:
    """Return [1, tokens, heads, size]. Shapes: see attention.segments_attention."""
    outputs: list[torch.Tensor] = []
    for begin, end in pairwise(bounds):
        part = slice(begin, end)
        outputs += _document(query[:, :, part], key[:, :, part], value[:, :, part], scores)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores
) -> Iterator[torch.Tensor]:
    """Yield the outputs of consecutive queries of one document, each as [1, heads, n, size]."""
    length, window = query.shape[2], scores.window
    is_plain = scores.softcap is None and scores.sinks is None
    grouped = query.shape[1] != key.shape[1]
    if is_plain and (window is None or window >= length):
        yield scaled_dot_product_attention(
            query, key, value, scale=scores.scale, is_causal=True, enable_gqa=grouped
        )
        return
    for begin in range(0, length, _BLOCK):
        end = min(begin + _BLOCK, length)
        first = 0 if window is None else max(0, begin - window + 1)
        visible = _visible(begin, end, first, window, query.device)
        part = query[:, :, begin:end], key[:, :, first:end], value[:, :, first:end]
        if is_plain:
            yield scaled_dot_product_attention(
                *part, attn_mask=visible, scale=scores.scale, enable_gqa=grouped
            )
        else:
            block: torch.Tensor = checkpoint(_block, *part, visible, scores, use_reentrant=False)
            yield block


def _visible(
    begin: int, end: int, first: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Return which of the keys from `first` to `end` each of some queries sees."""
    distance = torch.arange(begin, end, device=device)[:, None] - torch.arange(
        first, end, device=device
    )
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scores: Scores,
) -> torch.Tensor:
    """Compute the attention of a block in fp32, because a soft-cap of bf16 scores is coarse."""
    shared = key.shape[1]
    # [1, kv heads, queries of a group x n, size]: each key is multiplied with all of its queries.
    products = query.float().unflatten(1, (shared, -1)).flatten(2, 3) @ key.float().mT
    logits = (products * scores.scale).unflatten(2, (-1, query.shape[2])).flatten(1, 2)
    if scores.softcap is not None:
        logits = torch.tanh(logits / scores.softcap) * scores.softcap
    logits = logits.masked_fill(~visible, -torch.inf)
    if scores.sinks is None:
        shares = torch.softmax(logits, dim=-1)
    else:
        sinks = scores.sinks.float()[None, :, None, None].expand(*logits.shape[:3], 1)
        shares = torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]
    summed = shares.unflatten(1, (shared, -1)).flatten(2, 3) @ value.float()
    output: torch.Tensor = summed.unflatten(2, (-1, query.shape[2])).flatten(1, 2).to(value.dtype)
    return output
