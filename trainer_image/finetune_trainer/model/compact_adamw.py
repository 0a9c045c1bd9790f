"""AdamW with bf16 moments: 8 bytes of optimizer state per parameter instead of 12.

The weights stay in fp32. With beta2 0.999, a second moment changes by a thousandth per step, which
is less than bf16 resolves: rounded to nearest, it would never change. Therefore moments are rounded
stochastically. The noise depends on (seed, step, position) only, so a resumed run draws the same.

torchao's low-bit optimizers are not used: they keep moments in 8 or 4 bits or fp8, which they round
to nearest; their stochastic rounding is for bf16 weights and draws from torch's global generator;
and their step is compiled, while the trainer's image has no compiler (docs/design/adr/0018).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

_CHUNK = 1 << 24  # elements that are converted to fp32 at a time


class CompactAdamW(torch.optim.Optimizer):
    """AdamW as in torch.optim, for fp32 parameters, with bf16 moments."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        seed: int,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._update(parameter, group, 1009 * number + index)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any], position: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        step = int(state["step"])
        noise = torch.Generator(device=parameter.device)
        # A generator accepts seeds below 2^64, and training.seed alone may have 31 bits.
        noise.manual_seed(((self._seed * 1_000_003 + step) * 1_000_003 + position) % (1 << 64))
        assert parameter.grad is not None
        for begin in range(0, parameter.numel(), _CHUNK):
            weights, gradient, first, second = (
                tensor.view(-1)[begin : begin + _CHUNK]
                for tensor in (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
            )
            _advance(weights, gradient, first, second, step, group, noise)


def _advance(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    step: int,
    group: dict[str, Any],
    noise: torch.Generator,
) -> None:
    """Apply AdamW to a chunk: 1-D views, which are changed in place."""
    beta1, beta2 = group["betas"]
    gradient = gradient.float()
    average = torch.lerp(first.float(), gradient, 1 - beta1)
    square = second.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    weights.mul_(1 - group["lr"] * group["weight_decay"])
    scale = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    weights.addcdiv_(average, scale, value=-group["lr"] / (1 - beta1**step))
    first.copy_(_rounded(average, noise))
    second.copy_(_rounded(square, noise))


def _rounded(values: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Round fp32 values stochastically to values that bf16 represents exactly.

    Each value becomes one of its two neighbours in bf16, and is right on average.
    """
    bits = values.view(torch.int32)
    random = torch.empty_like(bits).random_(0, 1 << 16, generator=noise)
    # Random bits in the lower half carry into the upper half with the probability that the
    # lower half represents; then the lower half is cleared.
    rounded = ((bits + random) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(values), rounded, values)
