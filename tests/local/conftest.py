import os
from collections.abc import Iterator

import pytest

from finetune_local.cluster import Cluster, sweep


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes with four devices each, for all tests of this folder."""
    sweep("test-")
    cluster = Cluster.up(f"test-pair-{os.getpid()}", devices=4, nodes=2, tied=True)
    yield cluster
    cluster.down()
