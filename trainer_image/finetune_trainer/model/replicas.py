"""Ranks that should hold the same weights do (ZeRO 1 and 2).

A collective that silently did nothing (DeepSpeed before 0.19.8 on CPU), or a device that computes
wrongly, shows here after the first step, before it costs a run.
"""

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Peers

_BITS = {2: torch.int16, 4: torch.int32}


def assert_equal(engine: Engine, peers: Peers) -> None:
    """Compare one checksum over all live weights; collective. TrainerError 78 names a rank."""
    if engine.stage == 3 or peers.world == 1:
        return  # every element lives on one rank
    mine = torch.tensor([checksum(engine)])
    heard = [torch.zeros_like(mine) for _ in range(peers.world)]
    dist.all_gather(heard, mine, group=peers.control)
    found = [int(value) for value in heard]
    odd = [rank for rank, value in enumerate(found) if value != found[0]]
    if odd:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"after the first step the weights of rank {odd[0]} differ from those of rank 0: a "
            "device or the network between the workers computes wrongly; look at these nodes",
        )


@torch.no_grad()
def checksum(engine: Engine) -> int:
    """Of the bits of all live weights, position included; 63 bits."""
    total = 0
    for index, parameter in enumerate(engine.model.parameters()):
        bits = parameter.detach().flatten().view(_BITS[parameter.element_size()])
        # Sums over two strides: swapped halves do not cancel.
        sums = (bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64))
        total = (total * 31 + (index + 1) * int(sums[0]) + 7 * int(sums[1])) % (1 << 62)
    return total
