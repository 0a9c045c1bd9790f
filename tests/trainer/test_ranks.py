"""Which rank reads back the files of which other rank."""

import pytest
import torch

from finetune_trainer.model.ranks import Ranks


@pytest.mark.parametrize(
    ("world", "local"), [(8, 4), (4, 2), (6, 2), (3, 1), (2, 2), (4, 4), (1, 1)]
)
def test_files_are_read_back_by_a_rank_of_another_node_if_there_is_one(world: int, local: int):
    gang = [Ranks(rank, world, torch.device("cpu"), None, local) for rank in range(world)]
    assert sorted(ranks.verified_rank for ranks in gang) == list(range(world))
    for ranks in gang:
        assert world == local or ranks.verified_rank // local != ranks.rank // local
        assert world == 1 or ranks.verified_rank != ranks.rank
