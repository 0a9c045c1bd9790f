"""A copy of this rank's share of the state in host memory: all that a save stalls training for.

One flat buffer, allocated once: a later save must not find out that memory is short.
"""

import logging
import math

import torch

from finetune_trainer.checkpoint.fragments import fragments, tensors
from finetune_trainer.common import machine
from finetune_trainer.model.engine import Engine

_log = logging.getLogger(__name__)
_ALIGN = 16  # bytes
_SPARE = 0.9  # of what is available; the rest is the writer's and the page cache's


class Snapshot:
    """Room for one copy; without room it hands out the live tensors themselves."""

    def __init__(self, engine: Engine, local_ranks: int) -> None:
        self._engine = engine
        self._buffer: torch.Tensor | None = None
        self.size = sum(_aligned(tensor.nbytes) for tensor in live(engine).values())
        """Bytes of one copy."""
        wanted, available = self.size * local_ranks, machine.available_memory()
        self.is_copy = wanted <= _SPARE * available
        """False: what `take` returns changes with the next step."""
        if not self.is_copy:
            _log.warning(
                "checkpoints are written from the devices, and training waits meanwhile: a copy "
                "needs %.1f GB of host memory, %.1f GB are available; raise the pod's memory limit",
                wanted / 1e9,
                available / 1e9,
            )

    def take(self) -> dict[str, torch.Tensor]:
        """`parameter@offset|kind` -> 1-D tensor; valid until the next call."""
        state = live(self._engine)
        if not self.is_copy:
            return state
        if self._buffer is None:
            self._buffer = _buffer(self.size, pinned=any(t.is_cuda for t in state.values()))
        copies, at = {}, 0
        for name, tensor in state.items():
            room = self._buffer[at : at + tensor.nbytes].view(tensor.dtype)
            room.copy_(tensor, non_blocking=True)
            copies[name] = room
            at += _aligned(tensor.nbytes)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copies


def _buffer(size: int, *, pinned: bool) -> torch.Tensor:
    """Pinned in place: torch's own pinned allocator rounds up to a power of two."""
    buffer = torch.empty(size, dtype=torch.uint8)
    if pinned:
        code = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), size, 0)
        if int(code) != 0:
            _log.warning("host memory could not be pinned (CUDA error %d): copies are slower", code)
    return buffer


def live(engine: Engine) -> dict[str, torch.Tensor]:
    """The state itself: views of the master weights and moments that this rank owns."""
    found = {}
    for fragment in fragments(engine):
        for kind, tensor in tensors(engine, fragment).items():
            found[f"{fragment.name}@{fragment.offset}|{kind}"] = tensor
    return found


def _aligned(size: int) -> int:
    return math.ceil(size / _ALIGN) * _ALIGN
