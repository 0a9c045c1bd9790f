"""The slices of parameters that this rank owns in DeepSpeed's optimizers.

Their addresses come from attributes that are public by convention only, and a wrong address gives a
wrong model. Therefore tests compare them, and `mismatches` checks them at run time.
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
    """A slice of a parameter that this rank owns.

    Holds `numel` elements of the flattened parameter `name`, beginning at `offset`. Their fp32
    master weights are stored at `at` in the optimizer's tensor `flat`.
    """

    name: str
    offset: int
    numel: int
    flat: torch.Tensor
    at: int
    parameter: torch.nn.Parameter

    def master(self) -> torch.Tensor:
        """Return a view of the fp32 weights."""
        return self.flat.detach().narrow(0, self.at, self.numel)


def fragments(engine: Engine) -> Iterator[Fragment]:
    """Yield all fragments of this rank. Together, all ranks own every element exactly once."""
    names = engine.model.names()
    if engine.stage == 3:
        yield from _stage3(engine.optimizer, names)
    else:
        yield from _stage12(engine.optimizer, names)


def _stage3(optimizer: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Yield the slices of ZeRO-3, which cuts each parameter evenly and pads the last slice."""
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
    """Yield the slices of ZeRO-1 and 2, which cut a group of parameters as one flat tensor."""
    bf16 = type(optimizer).__name__ == "BF16_Optimizer"  # ZeRO-1 with fp32 accumulation
    groups = optimizer.bf16_groups if bf16 else optimizer.bit16_groups
    flats = (
        optimizer.fp32_groups_flat_partition if bf16 else optimizer.single_partition_of_fp32_groups
    )
    for group, flat in zip(groups, flats, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue  # other ranks own all of it
            low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Fragment(names[id(parameter)], low.start, low.numel, flat, high.start, parameter)


def tensors(engine: Engine, fragment: Fragment) -> dict[str, torch.Tensor]:
    """Return views of the master weights and of both moments, by KINDS.

    Before the first step, the moments are zeros.
    """
    state = optimizer_state(engine, fragment.flat)
    moments = {kind: state[kind].narrow(0, fragment.at, fragment.numel) for kind in KINDS[1:]}
    return {"master": fragment.master(), **moments}


def optimizer_state(engine: Engine, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return AdamW's state of one flat tensor. Creates it if necessary."""
    state: dict[str, torch.Tensor] = engine.optimizer.optimizer.state[flat]
    if "exp_avg" not in state:
        fused = flat.is_cuda and engine.moment_dtype == torch.float32
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device if fused else None)
        state["exp_avg"] = torch.zeros_like(flat, dtype=engine.moment_dtype)
        state["exp_avg_sq"] = torch.zeros_like(flat, dtype=engine.moment_dtype)
    return state


def adam_step(engine: Engine) -> int:
    """Return the number of updates that were applied so far."""
    for fragment in fragments(engine):
        return int(optimizer_state(engine, fragment.flat)["step"].item())
    return 0


def live_slice(engine: Engine, fragment: Fragment) -> torch.Tensor:
    """Return a view of the compute weights of a fragment."""
    if engine.stage == 3:
        shard: Any = fragment.parameter
        own: torch.Tensor = shard.ds_tensor.detach().flatten()[: fragment.numel]
        return own
    flat = fragment.parameter.detach().flatten()
    return flat[fragment.offset : fragment.offset + fragment.numel]


def mismatches(engine: Engine) -> list[str]:
    """Return this rank's parameters whose live weights differ from the rounded master weights."""
    return [
        fragment.name
        for fragment in fragments(engine)
        if not torch.equal(
            fragment.master().to(live_slice(engine, fragment).dtype), live_slice(engine, fragment)
        )
    ]
