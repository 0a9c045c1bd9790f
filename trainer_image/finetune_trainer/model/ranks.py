"""This rank among the ranks of its gang, and small agreements between them."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState


@dataclass(frozen=True)
class Ranks:
    """The ranks of a gang as one of them sees them. `control` is a gloo group of all of them."""

    rank: int
    world: int
    device: torch.device
    control: Any
    local_world: int = 1
    """Number of ranks that share the memory of this host."""

    @classmethod
    def of(cls, device: torch.device, control: Any) -> "Ranks":
        """Read rank and world size from accelerate, which adopts the existing process group."""
        process = PartialState(cpu=device.type == "cpu")
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return cls(process.process_index, process.num_processes, device, control, local)

    @property
    def verified_rank(self) -> int:
        """The rank whose files this rank reads back: one of another node, if there is one."""
        step = self.local_world if self.local_world < self.world else 1
        return (self.rank + step) % self.world

    def barrier(self) -> None:
        """Wait for all ranks; collective. Returns early if a rank is lost or on a timeout."""
        with contextlib.suppress(RuntimeError):  # what follows does not need the other ranks
            dist.barrier(self.control)

    def any(self, value: bool) -> bool:
        """Return whether the value is true on any rank; collective."""
        vector = torch.tensor([int(value)])
        dist.all_reduce(vector, op=dist.ReduceOp.MAX, group=self.control)
        return bool(vector.item())
