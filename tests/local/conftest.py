import os
from collections.abc import Iterator

import pytest

from finetune_local.cluster import Cluster
from tests.tools import clusters


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes with four devices each, for all tests of this folder."""
    clusters.remove_dead("test-")
    cluster = Cluster.up(f"test-pair-{os.getpid()}", devices=4, nodes=2, tied=True)
    yield cluster
    cluster.down()
