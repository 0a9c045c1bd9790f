"""What several test packages share: real control planes, started once a session."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from finetune_local.cluster import Cluster, sweep

# Verdicts must not depend on how busy the machine is.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """kube-apiserver and friends without a node: pods stay Pending unless a test moves them."""
    sweep("test-")
    cluster = Cluster.up(f"test-api-{os.getpid()}", control_plane_only=True, tied=True)
    yield cluster
    cluster.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with one node of four devices that really runs pods."""
    sweep("test-")
    cluster = Cluster.up(f"test-node-{os.getpid()}", devices=4, tied=True)
    yield cluster
    cluster.down()
