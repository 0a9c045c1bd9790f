"""This rank among the others, and what they agree on."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState


@dataclass(frozen=True)
class Peers:
    """Place in the gang; `control` is a gloo group for small agreements."""

    rank: int
    world: int
    device: torch.device
    control: Any
    local_world: int = 1
    """Ranks that share this host's memory."""

    @classmethod
    def of(cls, device: torch.device, control: Any) -> "Peers":
        """As accelerate finds it: it adopts the process group that the rendezvous made."""
        process = PartialState(cpu=device.type == "cpu")
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return cls(process.process_index, process.num_processes, device, control, local)

    @property
    def reads_back(self) -> int:
        """The rank whose files this one checks: one of another node, where there is one."""
        step = self.local_world if self.local_world < self.world else 1
        return (self.rank + step) % self.world

    def wait(self) -> None:
        """Until every rank is here, or one is gone, or the group's timeout is over; collective."""
        with contextlib.suppress(RuntimeError):  # what comes next needs nobody
            dist.barrier(self.control)

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank; collective."""
        vector = torch.tensor([int(mine)])
        dist.all_reduce(vector, op=dist.ReduceOp.MAX, group=self.control)
        return bool(vector.item())
