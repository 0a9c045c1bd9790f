"""This rank among the others, and what they agree on."""

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

    @classmethod
    def of(cls, device: torch.device, control: Any) -> "Peers":
        """As accelerate finds it: it adopts the process group that the rendezvous made."""
        process = PartialState(cpu=device.type == "cpu")
        return cls(process.process_index, process.num_processes, device, control)

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank; collective."""
        vector = torch.tensor([int(mine)])
        dist.all_reduce(vector, op=dist.ReduceOp.MAX, group=self.control)
        return bool(vector.item())
