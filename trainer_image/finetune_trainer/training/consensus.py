"""The consensus of a step: one small vector that all ranks sum, and read one step later.

Reading it at once would make the host wait for the device, and every rank for the slowest one, in
every step. All ranks read the same sums at the same step. Therefore they act together, one step
late.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Agreed:
    """The vector of one step, summed over all ranks."""

    loss: float
    """Loss of the weights before the step, in nats per trained token of the global batch."""
    router_loss: float
    """What the routers add to the loss in what is minimized, in the same unit."""
    stop: bool
    """Whether any rank was asked to stop."""
    save: bool
    """Whether rank 0's clock says that a checkpoint is due."""
    finished: int
    """Number of finished phases of saves, summed over all ranks."""
    failed: int
    """Number of ranks whose newest phase failed."""


class Consensus:
    """The vectors that are not read yet. All ranks post and receive them in the same order."""

    def __init__(self) -> None:
        self._pending: deque[tuple[torch.Tensor, Any]] = deque()

    def post(
        self,
        loss: torch.Tensor,
        router_loss: torch.Tensor,
        *,
        stop: bool,
        save: bool,
        finished: int,
        failed: bool,
    ) -> None:
        """Begin to sum a vector, without waiting for it.

        `loss` and `router_loss` are this rank's shares, scalars on its device.
        """
        flags = torch.tensor(
            [float(stop), float(save), float(finished), float(failed)], dtype=torch.float64
        )
        losses = torch.stack([loss.detach().double(), router_loss.detach().double()])
        vector = torch.cat([losses, flags.to(loss.device)])
        if vector.is_cuda:
            dist.all_reduce(vector)
            host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
            host.copy_(vector, non_blocking=True)
            arrival: Any = torch.cuda.Event()
            arrival.record()
            self._pending.append((host, arrival.synchronize))
        else:
            work = dist.all_reduce(vector, async_op=True)
            self._pending.append((vector, work.wait))

    def receive(self) -> Agreed:
        """Wait for the oldest vector and return it."""
        vector, wait = self._pending.popleft()
        wait()
        loss, router_loss, stop, save, finished, failed = vector.tolist()
        return Agreed(loss, router_loss, stop > 0, save > 0, round(finished), round(failed))
