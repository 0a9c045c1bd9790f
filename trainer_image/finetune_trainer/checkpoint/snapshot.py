"""A copy of this rank's share of the training state in host memory.

Copying is all that a save stalls training for. The copy is one flat buffer that is allocated once,
so that a later save cannot find that memory is short.
"""

import logging
import math

import torch

from finetune_trainer.checkpoint import write
from finetune_trainer.checkpoint.fragments import adam_step, fragments, tensors
from finetune_trainer.checkpoint.write import Shard
from finetune_trainer.common import machine
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Ranks

_log = logging.getLogger(__name__)
_ALIGN = 16  # bytes
_USABLE = 0.9  # of the available memory; the writer and the page cache need the rest


class Snapshot:
    """Copies the state. If memory is too small for a copy, it returns the live tensors."""

    def __init__(self, engine: Engine, ranks: Ranks) -> None:
        self._engine, self._ranks = engine, ranks
        self._buffer: torch.Tensor | None = None
        self.size = sum(_aligned(tensor.nbytes) for tensor in live(engine).values())
        """Bytes of one copy."""
        needed, available = self.size * ranks.local_world, machine.available_memory()
        self.is_copy = needed <= _USABLE * available
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
