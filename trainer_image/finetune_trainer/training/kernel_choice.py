"""Which fused kernels a gang uses: those that pass a self-check on each of its devices.

All ranks choose alike. Otherwise some would compute other roundings, and slow ones hold up the
others.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_trainer.model import kernels, self_check
from finetune_trainer.model.kernels import Kernels
from finetune_trainer.training.place import Place

_log = logging.getLogger(__name__)


def check(
    device: torch.device, model: Path, dtype: torch.dtype, advance: Callable[[], None]
) -> Kernels:
    """Return the kernels that this rank's device computes rightly with.

    The caller must not have used the device yet, which may allow one process at a time only.
    """
    if device.type != "cuda":
        return Kernels.without_gpu()
    name = str(dtype).removeprefix("torch.")
    request = self_check.Request(kernels.REGISTRY, str(model), name, str(device))
    return Kernels.passed(self_check.run(request, advance))


def agree(mine: Kernels, place: Place, control: Any) -> Kernels:
    """Return the kernels that all ranks can use; collective. Rank 0 logs which ones they are."""
    gathered: list[Any] = [None] * place.world
    dist.all_gather_object(gathered, mine, group=control)
    agreed = merged(gathered, place.processes)
    if place.rank == 0:
        used = ", ".join(sorted(agreed.used)) or "none"
        _log.info("fused kernels in use after the self-check: %s", used)
        for name, problem in agreed.problems.items():
            _log.warning("plain operations are used instead of the fused %s: %s", name, problem)
    return agreed


def merged(gathered: list[Kernels], processes: int) -> Kernels:
    """Return what all ranks can use. `processes` is the number of ranks of each worker."""
    problems: dict[str, str] = {}
    for rank, found in enumerate(gathered):
        for name, text in found.problems.items():
            place = f"worker {rank // processes}, device {rank % processes}"
            problems.setdefault(name, f"{place}: {text}")
    used = frozenset.intersection(*(found.used for found in gathered))
    return Kernels(used, problems)
