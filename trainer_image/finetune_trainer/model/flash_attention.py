"""Attention by the kernels of flash attention, on GPUs in bf16 and fp16."""

import inspect
from typing import Any

import torch
from torch.nn.functional import pad

from finetune_trainer.model.scores import Scores

_DTYPES = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256


def computes(query: torch.Tensor, value: torch.Tensor, scores: Scores) -> bool:
    """Return whether the kernels can compute this. They have no soft-cap."""
    size = query.shape[-1]
    fits = value.shape[-1] <= size <= _LARGEST_HEAD
    return query.is_cuda and query.dtype in _DTYPES and fits and scores.softcap is None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
    bounds: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """Return [1, tokens, heads, size]. Shapes: see attention.segments_attention."""
    size = value.shape[-1]
    if size != query.shape[-1]:
        # The kernels want heads of one size. Elements of 0 in the values add elements of 0.
        value = pad(value, (0, query.shape[-1] - size))
    flat = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    before = -1 if scores.window is None else scores.window - 1
    if scores.sinks is None:
        output = _varlen(*flat, bounds, longest, scores.scale, before)
    else:
        output = _SinkAttention.apply(*flat, scores.sinks, bounds, longest, scores.scale, before)
    return output[None, ..., :size]


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float,
    before: int,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 always allows fewer heads of keys and values, and has no argument for it.
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]}
    if "enable_gqa" not in inspect.signature(varlen_attn).parameters:
        grouped = {}
    output: Any = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(before, 0),
        **grouped,
    )
    attended: torch.Tensor = output
    return attended


class _SinkAttention(torch.autograd.Function):
    """Attention in which each query also sees a key with a score of its own and a value of 0.

    The kernels do not know this key. In the forward pass it only adds to the sum of exponentials.
    The kernel of the backward pass takes the shares of the keys from that sum, and the rest from
    the output, so that its gradients are right with the sum and the output that include the sink.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor,
        bounds: torch.Tensor,
        longest: int,
        scale: float,
        before: int,
    ) -> torch.Tensor:
        ctx.longest, ctx.scale, ctx.before = longest, scale, before
        output, logsum, state, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            bounds,
            bounds,
            longest,
            longest,
            0.0,
            before == -1,
            return_debug_mask=False,
            scale=scale,
            window_size_left=before,
            window_size_right=0,
        )
        if logsum.shape != (query.shape[1], query.shape[0]):
            raise RuntimeError(f"flash attention returned sums of shape {tuple(logsum.shape)}")
        total = torch.logaddexp(logsum, sinks.float()[:, None])
        share = torch.exp(logsum - total)
        attended: torch.Tensor = (output * share.T[..., None]).to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, bounds, attended, total, state)
        return attended

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, sinks, bounds, output, total, state = ctx.saved_tensors
        gradient = outputs[0].contiguous()
        gradients = torch.ops.aten._flash_attention_backward(
            gradient,
            query,
            key,
            value,
            output,
            total,
            bounds,
            bounds,
            ctx.longest,
            ctx.longest,
            0.0,
            ctx.before == -1,
            state,
            torch.empty(0, device=query.device),
            scale=ctx.scale,
            window_size_left=ctx.before,
            window_size_right=0,
        )
        shares = torch.exp(sinks.float() - total.T)
        grad_sinks = -(shares * (gradient.float() * output.float()).sum(dim=2)).sum(dim=0)
        return (*gradients, grad_sinks.to(sinks.dtype), None, None, None, None)
