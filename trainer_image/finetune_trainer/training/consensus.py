"""What the ranks tell each other once a step: one small vector, summed, and read one step later.

Reading it at once would make the host wait for the device, and every rank for the slowest one, in
every step. All ranks read the same sums at the same step, so they act together, one step late.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Heard:
    """One step's vector, summed over the ranks."""

    loss: float
    """Of the weights before the step, nats per trained token of the whole batch."""
    stop: bool
    """Some rank was asked to stop."""
    save: bool
    """A checkpoint is due by the clock."""
    finished: int
    """Phases of saving that were finished, over all ranks."""
    failed: int
    """Ranks whose phase failed."""


class Agreement:
    """Vectors on their way; every rank posts and hears them in the same order."""

    def __init__(self) -> None:
        self._on_their_way: deque[tuple[torch.Tensor, Any]] = deque()

    def post(
        self, loss: torch.Tensor, *, stop: bool, save: bool, finished: int, failed: bool
    ) -> None:
        """Begin a sum; `loss`, this rank's share, is a scalar on its device and not waited for."""
        facts = torch.tensor(
            [float(stop), float(save), float(finished), float(failed)], dtype=torch.float64
        )
        vector = torch.cat([loss.detach().double()[None], facts.to(loss.device)])
        if vector.is_cuda:
            dist.all_reduce(vector)
            host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
            host.copy_(vector, non_blocking=True)
            arrival: Any = torch.cuda.Event()
            arrival.record()
            self._on_their_way.append((host, arrival.synchronize))
        else:
            work = dist.all_reduce(vector, async_op=True)
            self._on_their_way.append((vector, work.wait))

    def hear(self) -> Heard:
        """The oldest vector; waits until it is there."""
        vector, wait = self._on_their_way.popleft()
        wait()
        loss, stop, save, finished, failed = vector.tolist()
        return Heard(loss, stop > 0, save > 0, round(finished), round(failed))
