"""Which slices of which parameters this rank owns, in DeepSpeed's optimizers.

The addresses come from attributes that are public by convention only; equality tests hold them, and
`mismatches` checks them at run time: a wrong address gives a wrong model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from finetune_trainer.model.engine import Engine

KINDS = ("master", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """`numel` elements of flattened parameter `name` from `offset`; at `at` in `flat` (fp32)."""

    name: str
    offset: int
    numel: int
    flat: torch.Tensor
    at: int
    parameter: torch.nn.Parameter

    def master(self) -> torch.Tensor:
        """The fp32 weights, a view."""
        return self.flat.detach().narrow(0, self.at, self.numel)


def fragments(engine: Engine) -> Iterator[Fragment]:
    """All fragments of this rank; together the ranks own every element exactly once."""
    names = engine.model.names()
    if engine.stage == 3:
        yield from _stage3(engine.optimizer, names)
    else:
        yield from _stage12(engine.optimizer, names)


def _stage3(optimizer: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Every parameter is cut evenly over the ranks, the last slice padded."""
    rank = dist.get_rank()
    for index, group in enumerate(optimizer.fp16_groups):
        flat, at = optimizer.fp32_partitioned_groups_flat[index], 0
        for parameter in group:
            size = parameter.ds_tensor.numel()
            start = size * rank
            own = max(0, min(size, parameter.ds_numel - start))
            if own:
                yield Fragment(names[id(parameter)], start, own, flat, at, parameter)
            at += size


def _stage12(optimizer: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """A group is one flat tensor cut over the ranks, wherever the cuts fall."""
    bf16 = type(optimizer).__name__ == "BF16_Optimizer"  # ZeRO-1 with fp32 accumulation
    groups = optimizer.bf16_groups if bf16 else optimizer.bit16_groups
    flats = (
        optimizer.fp32_groups_flat_partition if bf16 else optimizer.single_partition_of_fp32_groups
    )
    for group, flat in zip(groups, flats, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue  # all of it belongs to other ranks
            low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Fragment(names[id(parameter)], low.start, low.numel, flat, high.start, parameter)


def tensors(engine: Engine, fragment: Fragment) -> dict[str, torch.Tensor]:
    """By KINDS, views: the master weights, and the moments (zeros before the first step)."""
    state = optimizer_state(engine, fragment.flat)
    moments = {kind: state[kind].narrow(0, fragment.at, fragment.numel) for kind in KINDS[1:]}
    return {"master": fragment.master(), **moments}


def optimizer_state(engine: Engine, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's state of one flat tensor, made when there is none yet."""
    state: dict[str, torch.Tensor] = engine.optimizer.optimizer.state[flat]
    if "exp_avg" not in state:
        fused = flat.is_cuda and engine.moment_dtype == torch.float32
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device if fused else None)
        state["exp_avg"] = torch.zeros_like(flat, dtype=engine.moment_dtype)
        state["exp_avg_sq"] = torch.zeros_like(flat, dtype=engine.moment_dtype)
    return state


def adam_step(engine: Engine) -> int:
    """Updates that were applied so far."""
    for fragment in fragments(engine):
        return int(optimizer_state(engine, fragment.flat)["step"].item())
    return 0


def live_slice(engine: Engine, fragment: Fragment) -> torch.Tensor:
    """The compute weights that belong to a fragment."""
    if engine.stage == 3:
        shard: Any = fragment.parameter
        own: torch.Tensor = shard.ds_tensor.detach().flatten()[: fragment.numel]
        return own
    flat = fragment.parameter.detach().flatten()
    return flat[fragment.offset : fragment.offset + fragment.numel]


def mismatches(engine: Engine) -> list[str]:
    """Names of this rank's parameters whose live weights are not the rounded master."""
    return [
        fragment.name
        for fragment in fragments(engine)
        if not torch.equal(
            fragment.master().to(live_slice(engine, fragment).dtype), live_slice(engine, fragment)
        )
    ]
