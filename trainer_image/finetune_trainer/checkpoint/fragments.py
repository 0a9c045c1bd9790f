"""The slices of parameters that this rank owns in DeepSpeed's optimizers, and their snapshot.

The addresses of slices come from attributes that are public by convention only, and a wrong address
gives a wrong model. Therefore tests compare them, and `mismatches` checks them at run time.

A snapshot is a copy of this rank's share of the training state in host memory. Copying is all that
a save stalls training for. The copy is one flat buffer that is allocated once, so that a later save
cannot find that memory is short.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from finetune_trainer.checkpoint import write
from finetune_trainer.checkpoint.write import Shard
from finetune_trainer.common import machine
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Ranks

KINDS = ("master", "exp_avg", "exp_avg_sq")
_log = logging.getLogger(__name__)
_ALIGN = 16  # bytes
_USABLE = 0.9  # of the available memory; the writer and the page cache need the rest
_USABLE_WITHOUT_GPUS = 0.25  # gradients, activations and other pods of the host need more


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


def _live_slice(engine: Engine, fragment: Fragment) -> torch.Tensor:
    """Return a view of the compute weights of a fragment."""
    if engine.stage == 3:
        shard: Any = fragment.parameter
        own: torch.Tensor = shard.ds_tensor.detach().flatten()[: fragment.numel]
        return own
    flat = fragment.parameter.detach().flatten()
    return flat[fragment.offset : fragment.offset + fragment.numel]


def mismatches(engine: Engine) -> list[str]:
    """Return this rank's parameters whose live weights differ from the rounded master weights."""
    return [fragment.name for fragment in fragments(engine) if not _is_consistent(engine, fragment)]


def _is_consistent(engine: Engine, fragment: Fragment) -> bool:
    weights = _live_slice(engine, fragment)
    # Masters on the host are rounded there: fewer bytes have to be moved to the device.
    return torch.equal(fragment.master().to(weights.dtype).to(weights.device), weights)


class Snapshot:
    """Copies the state. If memory is too small for a copy, it returns the live tensors."""

    def __init__(self, engine: Engine, ranks: Ranks) -> None:
        self._engine, self._ranks = engine, ranks
        self._buffer: torch.Tensor | None = None
        self.size = sum(_aligned(tensor.nbytes) for tensor in live(engine).values())
        """Bytes of one copy."""
        needed, available = self.size * ranks.local_world, machine.available_memory()
        usable = _USABLE if ranks.device.type == "cuda" else _USABLE_WITHOUT_GPUS
        self.is_copy = needed <= usable * available
        """Whether the tensors that `take` returns stay unchanged during the next steps."""
        if not self.is_copy:
            _log.warning(
                "checkpoints are written from the devices, and training waits meanwhile: a copy "
                "needs %.1f GB of host memory, %.1f GB are available; raise the pod's memory limit",
                needed / 1e9,
                available / 1e9,
            )

    def take(self) -> Shard:
        """Return this rank's part of a checkpoint, valid until the next call.

        Its tensors are 1-D and named `parameter@offset|kind`.
        """
        return Shard(
            rank=self._ranks.rank,
            world=self._ranks.world,
            zero_stage=self._engine.stage,
            tensors=self._copy(),
            adam_step=adam_step(self._engine),
            random=write.random_state(),
        )

    def _copy(self) -> dict[str, torch.Tensor]:
        state = live(self._engine)
        if not self.is_copy:
            return state
        if self._buffer is None:
            self._buffer = _buffer(self.size, pinned=any(t.is_cuda for t in state.values()))
        copies, at = {}, 0
        for name, tensor in state.items():
            target = self._buffer[at : at + tensor.nbytes].view(tensor.dtype)
            target.copy_(tensor, non_blocking=True)
            copies[name] = target
            at += _aligned(tensor.nbytes)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copies


def _buffer(size: int, *, pinned: bool) -> torch.Tensor:
    """Allocate a buffer and pin it in place.

    torch's own pinned allocator would round the size up to a power of two.
    """
    buffer = torch.empty(size, dtype=torch.uint8)
    if pinned:
        code = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), size, 0)
        if int(code) != 0:
            _log.warning("host memory could not be pinned (CUDA error %d): copies are slower", code)
    return buffer


def live(engine: Engine) -> dict[str, torch.Tensor]:
    """Return views of the master weights and moments that this rank owns."""
    found = {}
    for fragment in fragments(engine):
        for kind, tensor in tensors(engine, fragment).items():
            found[f"{fragment.name}@{fragment.offset}|{kind}"] = tensor
    return found


def _aligned(size: int) -> int:
    return math.ceil(size / _ALIGN) * _ALIGN
