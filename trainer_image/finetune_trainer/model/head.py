"""The language-model head and its loss in one function, without a [tokens, vocabulary] tensor.

The linear layer and the cross-entropy are computed in chunks, for tokens with loss only. The
gradients are computed in the forward pass, while the logits of a chunk are in memory. Method:
Liger's fused linear cross-entropy, here in plain torch for CPU and GPU.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 1 << 26  # logits per chunk: 256 MiB in fp32


@dataclass(frozen=True)
class LogitScale:
    """What a model does with the products of its head: multiplier x product, then the soft-cap."""

    multiplier: float = 1.0
    softcap: float | None = None
    """Logits become cap x tanh(logit / cap)."""

    @classmethod
    def of(cls, config: Any) -> "LogitScale":
        """Read the fields of the families. exactness.py compares what comes of them."""
        multiplier = getattr(config, "logit_scale", None) or 1.0
        multiplier *= getattr(config, "lm_head_multiplier", None) or 1.0
        return cls(
            multiplier=multiplier / (getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale fp32 logits in place, and return them."""
        if self.multiplier != 1.0:
            logits.mul_(self.multiplier)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slopes(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Return the derivative of `apply` at its results."""
        if self.softcap is None:
            return self.multiplier
        return (1 - (logits / self.softcap).square_()).mul_(self.multiplier)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: LogitScale,
    ) -> torch.Tensor:
        want_hidden, want_weight, want_bias, *_ = ctx.needs_input_grad
        chunk = max(1, _CHUNK_ELEMENTS // weight.shape[0])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # Sums over chunks are fp32, because bf16 would lose small contributions.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        grad_bias = weight.new_zeros(len(weight), dtype=torch.float32) if want_bias else None
        for begin in range(0, hidden.shape[0], chunk):
            part, labels = hidden[begin : begin + chunk], targets[begin : begin + chunk]
            logits = _logits(part, weight, bias, scale)
            normaliser = torch.logsumexp(logits, dim=1)
            total += (normaliser - logits.gather(1, labels[:, None])[:, 0]).sum()
            if grad_hidden is None and grad_weight is None and grad_bias is None:
                continue
            slopes = scale.slopes(logits)
            logits.sub_(normaliser[:, None]).exp_()
            logits.scatter_add_(1, labels[:, None], logits.new_full((len(labels), 1), -1.0))
            if scale != LogitScale():
                logits.mul_(slopes)
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0)
            gradient = logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[begin : begin + chunk] = gradient @ weight
            if grad_weight is not None:
                grad_weight += (gradient.T @ part).float()
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[Any, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = outputs[0]
        return (
            # The scale stays fp32: rounded to bf16 it would be off by up to 0.4 %.
            None if grad_hidden is None else grad_hidden * scale,
            None if grad_weight is None else (grad_weight * scale).to(ctx.dtype),
            None if grad_bias is None else (grad_bias * scale).to(ctx.dtype),
            None,
            None,
        )


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: LogitScale
) -> torch.Tensor:
    logits = (hidden @ weight.T).float()
    return scale.apply(logits if bias is None else logits.add_(bias))


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: LogitScale = LogitScale(),
) -> torch.Tensor:
    """Return the sum of cross-entropies as an fp32 scalar, in nats.

    hidden [positions, size], weight [vocabulary, size] and bias [vocabulary] have the same dtype;
    targets [positions] is int64.
    """
    if not torch.is_grad_enabled():
        # `needs_input_grad` ignores no_grad: an evaluation would compute gradients and drop them.
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, scale)
    return loss


def plain_linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: LogitScale = LogitScale(),
) -> torch.Tensor:
    """Return the same as `linear_cross_entropy`, with torch's own functions and gradients.

    It takes longer, because the logits of each chunk are computed again in the backward pass.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    chunk = max(1, _CHUNK_ELEMENTS // weight.shape[0])
    for part, labels in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        arguments = (part, weight, labels, bias, scale)
        total = total + checkpoint(_cross_entropy, *arguments, use_reentrant=False)
    return total


def _cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    scale: LogitScale,
) -> torch.Tensor:
    logits = (hidden @ weight.T).float()
    logits = logits if bias is None else logits + bias
    logits = logits * scale.multiplier
    if scale.softcap is not None:  # not in place: the backward pass needs what tanh returns
        logits = scale.softcap * torch.tanh(logits / scale.softcap)
    return cross_entropy(logits, targets, reduction="sum")


class LossHead(torch.nn.Module):
    """A module that owns the output embedding, so that ZeRO-3's hooks gather it."""

    def __init__(self, head: torch.nn.Linear, scale: LogitScale) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = head.weight, head.bias, scale
        self.is_fused = True

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum of cross-entropies. Shapes: see `linear_cross_entropy`."""
        function = linear_cross_entropy if self.is_fused else plain_linear_cross_entropy
        return function(hidden, self.weight, targets, self.bias, self.scale)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of some positions as [positions, vocabulary], in fp32."""
        return _logits(hidden, self.weight, self.bias, self.scale)
