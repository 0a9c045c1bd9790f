"""Checks that all ranks have the same weights (ZeRO 1 and 2).

This finds a collective that silently did nothing (DeepSpeed before 0.19.8 on CPU), or a device that
computes wrongly, after the first step instead of at the end of a run.
"""

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Ranks

_BITS = {2: torch.int16, 4: torch.int32}


def assert_equal(engine: Engine, ranks: Ranks) -> None:
    """Compare one checksum over all live weights; collective.

    Raises TrainerError (78), which names a rank, if they differ.
    """
    if engine.stage == 3 or ranks.world == 1:
        return  # every element exists on one rank only
    mine = torch.tensor([checksum(engine)])
    gathered = [torch.zeros_like(mine) for _ in range(ranks.world)]
    dist.all_gather(gathered, mine, group=ranks.control)
    checksums = [int(value) for value in gathered]
    different = [rank for rank, value in enumerate(checksums) if value != checksums[0]]
    if different:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"after the first step the weights of rank {different[0]} differ from those of rank 0: "
            "a device or the network between the workers computes wrongly; check these nodes",
        )


@torch.no_grad()
def checksum(engine: Engine) -> int:
    """Return a checksum of 62 bits over the bits of all live weights and their positions."""
    total = 0
    for index, parameter in enumerate(engine.model.parameters()):
        bits = parameter.detach().flatten().view(_BITS[parameter.element_size()])
        # The second sum changes if elements at even and odd positions are swapped.
        sums = (bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64))
        total = (total * 31 + (index + 1) * int(sums[0]) + 7 * int(sums[1])) % (1 << 62)
    return total
