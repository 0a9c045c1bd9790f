"""Shared by all tests: a real control plane, started once per test run, and the order of files."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from finetune_local import build
from finetune_local.cluster import Cluster
from tests.tools import clusters

# A process that a shell starts in the background ignores SIGINT, as do its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Less garbage collection in control planes, kubectl and Helm, at the cost of memory.
os.environ.setdefault("GOGC", "400")

# These need gigabytes and root: `make test-images` and `make test-nodes`.
_SEPARATE = {"images": "FINETUNE_TEST_IMAGES", "nodes": "FINETUNE_TEST_NODES"}
collect_ignore = [folder for folder, name in _SEPARATE.items() if not os.environ.get(name)]

# Results must not depend on how busy the machine is.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--operator-elsewhere",
        action="store_true",
        help="leave out the slow tests of the operator, which hack/test.py runs on another Python",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of a cluster while there is no control plane: a build is longer than a test."""
    if item.get_closest_marker("cluster") and build.needs():
        pytest.skip("the control plane is not built; run `make setup`")


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """A control plane without nodes: pods stay Pending unless a test writes their status."""
    clusters.remove_dead("test-")
    cluster = clusters.up_with_audit_log(f"test-api-{os.getpid()}", nodes=0)
    yield cluster
    cluster.down()


# Files that take minutes, longest first: as the last file it would keep a single worker busy.
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
    """Leave out what runs elsewhere, and order the files, not the tests within a file.

    Files that share a control plane come last, because an idle one uses a tenth of a CPU.
    """
    if config.getoption("--operator-elsewhere"):
        elsewhere = config.rootpath / "tests" / "operator"
        left = [i for i in items if i.get_closest_marker("slow") and elsewhere in i.path.parents]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]
    size = {config.rootpath / name: number for number, name in enumerate(_LONGEST)}
    late = {i.path for i in items if "control_plane" in getattr(i, "fixturenames", ())}
    items.sort(key=lambda item: (item.path in late, size.get(item.path, len(size))))
