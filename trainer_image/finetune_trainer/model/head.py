"""The language-model head and its loss in one function, without a [tokens, vocabulary] tensor.

The linear layer and the cross-entropy are computed in chunks, for tokens with loss only. The
gradients are computed in the forward pass, while the logits of a chunk are in memory. Method:
Liger's fused linear cross-entropy, here in plain torch for CPU and GPU.
"""

from typing import Any

import torch

_CHUNK_ELEMENTS = 1 << 26  # logits per chunk: 256 MiB in fp32


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        want_hidden, want_weight, _ = ctx.needs_input_grad
        chunk = max(1, _CHUNK_ELEMENTS // weight.shape[0])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # Sums over chunks are fp32, because bf16 would lose small contributions.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        for begin in range(0, hidden.shape[0], chunk):
            part, labels = hidden[begin : begin + chunk], targets[begin : begin + chunk]
            logits = (part @ weight.T).float()
            normaliser = torch.logsumexp(logits, dim=1)
            total += (normaliser - logits.gather(1, labels[:, None])[:, 0]).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            logits.sub_(normaliser[:, None]).exp_()
            logits.scatter_add_(1, labels[:, None], logits.new_full((len(labels), 1), -1.0))
            gradient = logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[begin : begin + chunk] = gradient @ weight
            if grad_weight is not None:
                grad_weight += (gradient.T @ part).float()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[Any, Any, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = outputs[0]
        return (
            # The scale stays fp32: rounded to bf16 it would be off by up to 0.4 %.
            None if grad_hidden is None else grad_hidden * scale,
            None if grad_weight is None else (grad_weight * scale).to(ctx.dtype),
            None,
        )


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the sum of cross-entropies as an fp32 scalar, in nats.

    hidden [positions, size] and weight [vocabulary, size] have the same dtype; targets
    [positions] is int64.
    """
    if not torch.is_grad_enabled():
        # `needs_input_grad` ignores no_grad: an evaluation would compute gradients and drop them.
        hidden, weight = hidden.detach(), weight.detach()
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, targets)
    return loss


class LossHead(torch.nn.Module):
    """A module that owns the output embedding, so that ZeRO-3's hooks gather it."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum of cross-entropies. Shapes: see `linear_cross_entropy`."""
        return linear_cross_entropy(hidden, self.weight, targets)
