"""AdamW for master weights on a host without GPUs, in chunks.

torch's plain AdamW makes two temporary tensors as large as a parameter. DeepSpeed passes all
weights of a group as one parameter, so they would take two thirds as much memory as weights and
moments. Every operation is elementwise, so the result does not depend on the chunks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adamw import adamw

_CHUNK = 1 << 22  # elements: 16 MiB, less than malloc would map anew each time


class ChunkedAdamW(torch.optim.AdamW):
    """torch.optim.AdamW, for parameters that are contiguous."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        weights = _chunks(parameter)
        steps = [state["step"].clone() for _ in weights]  # each is incremented once
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            _chunks(parameter.grad),
            _chunks(state["exp_avg"]),
            _chunks(state["exp_avg_sq"]),
            max_exp_avg_sqs=[],
            state_steps=steps,
            foreach=False,
            fused=False,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        state["step"] += 1


def _chunks(tensor: torch.Tensor) -> list[torch.Tensor]:
    return list(tensor.view(-1).split(_CHUNK))
