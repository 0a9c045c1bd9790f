"""Shared by the tests of the definition: an API server that knows it."""

from collections.abc import Iterator

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.api.server import Server


@pytest.fixture(scope="module")
def server(control_plane: Cluster) -> Iterator[Server]:
    """A client of an API server with the definition of FineTuneJobs."""
    control_plane.kubectl("apply", "-f", str(TREE / "crds"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    found = Server(control_plane)
    yield found
    found.close()
