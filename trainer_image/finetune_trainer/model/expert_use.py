"""Counts how often each expert is used, to find those that no token reaches."""

from typing import Any

import torch
import torch.distributed as dist

from finetune_trainer.model.experts import expert_count


class ExpertUse:
    """The number of tokens of each expert of each layer since the last look."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._counts: dict[str, torch.Tensor] = {}
        for name, module in model.named_modules():
            if experts := expert_count(name, module):
                module.register_forward_pre_hook(_Counter(self._counts, name, experts))

    @torch.no_grad()
    def unused(self) -> list[str]:
        """Return the experts of all layers without a token on any rank, and count anew; collective.

        Each is named after its module, such as model.layers.3.mlp.experts.17.
        """
        if not self._counts:
            return []
        names = sorted(self._counts)
        together = torch.cat([self._counts[name] for name in names])
        dist.all_reduce(together)
        sizes = [len(self._counts[name]) for name in names]
        self._counts.clear()
        return [
            f"{name}.{number}"
            for name, counts in zip(names, together.split(sizes), strict=True)
            for number, count in enumerate(counts.tolist())
            if not count
        ]


class _Counter:
    """A hook that counts the experts which a layer chooses in training."""

    def __init__(self, counts: dict[str, torch.Tensor], name: str, experts: int) -> None:
        self._counts, self._name, self._experts = counts, name, experts

    def __call__(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        # Modules of experts are called with hidden states, chosen experts and their weights.
        chosen = inputs[1] if len(inputs) > 1 else None
        if (
            not module.training
            or not isinstance(chosen, torch.Tensor)
            or chosen.is_floating_point()
        ):
            return
        counts = self._counts.get(self._name)
        if counts is None:
            counts = torch.zeros(self._experts, device=chosen.device)
            self._counts[self._name] = counts
        flat = chosen.detach().flatten()
        counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))
