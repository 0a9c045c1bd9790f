"""What several test packages share: a real control plane, started once a session."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from finetune_local.cluster import Cluster, sweep

# What a shell starts in the background ignores SIGINT, and so does all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Less garbage collection in control planes, in kubectl and in Helm, for memory that is there.
os.environ.setdefault("GOGC", "400")

# Images take gigabytes and root: `make test-images`.
collect_ignore = [] if os.environ.get("FINETUNE_TEST_IMAGES") else ["images"]

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


# Files of minutes, the longest first: one that comes last keeps one worker busy alone.
_LONGEST = [
    f"tests/{name}.py"
    for name in (
        "e2e/test_disasters",
        "e2e/test_recovery",
        "e2e/test_sources",
        "e2e/test_unhappy",
        "operator/test_simulator",
        "trainer/test_interruption",
        "trainer/test_build",
        "trainer/test_network",
        "trainer/test_remote_prepare",
        "trainer/test_full_run",
        "trainer/test_options",
        "trainer/test_trackers",
        "trainer/test_remote_hub",
        "trainer/test_storage_trouble",
        "trainer/test_torture",
        "cli/test_commands",
        "operator/test_crash_points",
        "operator/test_availability",
        "chart/test_lifecycle",
    )
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files; inside of one everything stays as it is.

    Those that share a control plane come last: one that nobody uses still costs a tenth of a CPU.
    """
    size = {config.rootpath / name: number for number, name in enumerate(_LONGEST)}
    late = {i.path for i in items if "control_plane" in getattr(i, "fixturenames", ())}
    items.sort(key=lambda item: (item.path in late, size.get(item.path, len(size))))
