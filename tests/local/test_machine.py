"""The checks of the machine: disk space per file system, and namespaces."""

import os
import shutil
import sys
import tempfile

import pytest

from finetune_local.machine import GB, Need, no_memory, no_namespaces, no_room
from tests.namespace import run_where, small_disk


def test_a_suitable_machine_is_accepted(tmp_path):
    assert no_namespaces() is None
    assert no_room([]) is None
    assert no_room([Need("a file", 1, tmp_path / "not" / "there" / "yet")]) is None


def test_needs_on_one_file_system_add_up(tmp_path):
    free = os.statvfs(tmp_path)
    half = int(free.f_bavail * free.f_frsize * 0.6)
    assert no_room([Need("one", half, tmp_path)]) is None
    message = no_room([Need("one", half, tmp_path), Need("two", half, tmp_path / "b")])
    assert message is not None
    assert "GB of disk are free" in message
    assert f"one {half / GB:.1f} GB in {tmp_path}; two" in message


@pytest.mark.parametrize(("available", "swap", "fits"), [(8, 0, True), (5, 2, True), (5, 0, False)])
def test_memory_and_swap_must_hold_what_is_needed(available, swap, fits, tmp_path):
    meminfo = tmp_path / "meminfo"
    lines = {"MemTotal": 8, "MemAvailable": available, "SwapFree": swap}
    meminfo.write_text("".join(f"{k}: {v * GB // 1024} kB\n" for k, v in lines.items()))
    message = no_memory("the demo", 6 * GB, meminfo)
    assert (message is None) == fits
    if message:
        assert "5.0 GB of memory and 0.0 GB of swap are available" in message
        assert "the demo needs 6.0 GB" in message


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed")
def test_a_machine_without_a_default_route_runs_a_cluster():
    program = f"{sys.executable} -m finetune_local"
    script = (
        "ip link set lo up && test $(wc -l < /proc/net/route) -le 1 && "
        f"{program} up --nodes 0; code=$?; {program} down; exit $code"
    )
    alone = ["unshare", "--net", "sh", "-c", script]
    # The path of a socket is limited, and tmp_path is long where tests run in several processes.
    with tempfile.TemporaryDirectory() as state:
        done = run_where("true", *alone, XDG_STATE_HOME=state)
    assert done.returncode == 0, done.stderr
    assert "cluster default is up" in done.stdout


def test_a_cluster_is_refused_if_its_disk_is_too_small(tmp_path):
    up = [sys.executable, "-m", "finetune_local", "up", "--name", "test-small"]
    done = run_where(small_disk(tmp_path), *up, XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("finetune-local: 0.1 GB of disk are free, 1.0 GB are needed")
    assert len(done.stderr.splitlines()) == 1
