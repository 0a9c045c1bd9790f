"""Who is whose neighbour."""

import pytest
import torch

from finetune_trainer.model.ranks import Peers


@pytest.mark.parametrize(
    ("world", "local"), [(8, 4), (4, 2), (6, 2), (3, 1), (2, 2), (4, 4), (1, 1)]
)
def test_files_are_read_back_by_another_node_where_there_is_one(world: int, local: int):
    gang = [Peers(rank, world, torch.device("cpu"), None, local) for rank in range(world)]
    read = [peer.reads_back for peer in gang]
    assert sorted(read) == list(range(world))
    for peer in gang:
        assert world == local or peer.reads_back // local != peer.rank // local
        assert world == 1 or peer.reads_back != peer.rank
