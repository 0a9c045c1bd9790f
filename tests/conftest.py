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
    cluster = Cluster.up(f"test-api-{os.getpid()}", control_plane_only=True, tied=True, audit=True)
    yield cluster
    cluster.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with one node of four devices that really runs pods."""
    sweep("test-")
    cluster = Cluster.up(f"test-node-{os.getpid()}", devices=4, tied=True)
    yield cluster
    cluster.down()


# Files of minutes, the longest first: one that comes last keeps one worker busy alone.
_LONGEST = [
    f"tests/{name}.py"
    for name in (
        "e2e/test_disasters",
        "e2e/test_recovery",
        "operator/test_simulator",
        "trainer/test_interruption",
        "operator/test_crash_points",
        "trainer/test_network",
        "trainer/test_remote_prepare",
        "trainer/test_full_run",
        "trainer/test_options",
        "trainer/test_trackers",
        "trainer/test_remote_hub",
        "e2e/test_sources",
        "e2e/test_unhappy",
        "trainer/test_build",
        "cli/test_commands",
        "operator/test_availability",
        "trainer/test_storage_trouble",
        "trainer/test_torture",
        "chart/test_lifecycle",
    )
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files; inside of one everything stays as it is."""
    place = {str(config.rootpath / name): number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))
