"""Clusters start, run side by side and end without leaving processes or files."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from finetune_local.cache import clusters_folder
from finetune_local.cluster import Cluster, ClusterError, die_with_parent
from finetune_local.processes import is_alive, wait_gone
from tests.installed import wait_for
from tests.local.pods import container, create, logs, pod, processes_with
from tests.tools import clusters

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

_UP = """
import sys
from finetune_local.cache import clusters_folder
from finetune_local.cluster import Cluster
Cluster.up(sys.argv[1], devices=1, nodes=int(sys.argv[2]), tied=True)
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def twins() -> Iterator[list[Cluster]]:
    """Return two clusters that two processes bring up at the same time; the first has a node."""
    names = [f"test-twin{number}-{os.getpid()}" for number in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _UP, name, nodes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        for name, nodes in zip(names, "10", strict=True)
    ]
    for process in processes:
        assert process.stdout.readline() == b"up\n"
    yield [Cluster(name) for name in names]
    for process, name in zip(processes, names, strict=True):
        process.communicate()
        Cluster(name).down()


def test_two_clusters_that_start_at_once_share_nothing(twins):
    first, second = (twin.settings for twin in twins)
    assert first.api_port != second.api_port
    assert first.pod_network != second.pod_network
    twins[1].kubectl("create", "namespace", "only-here")
    with pytest.raises(ClusterError, match="NotFound"):
        twins[0].kubectl("get", "namespace", "only-here")


def test_the_lock_is_held_until_the_chosen_network_is_visible(monkeypatch):
    """Two clusters that start at once must not choose the same network."""
    tried = []

    def start(cluster, **_):
        with (clusters_folder() / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tried.append("blocked")
        raise ClusterError("not started")

    monkeypatch.setattr(Cluster, "_start", start)
    with pytest.raises(ClusterError, match="not started"):
        Cluster.up(f"test-network-{os.getpid()}")
    assert tried == ["blocked"]
    Cluster(f"test-network-{os.getpid()}").down()


def test_all_listeners_are_on_the_loopback_address(twins):
    listening = listeners_of(twins[0])
    assert len(listening) >= 2, "the API server and the log endpoint of the node"
    assert {address for address, _ in listening} == {"127.0.0.1"}


def test_a_killed_cluster_with_a_pod_leaves_nothing(twins):
    twin = twins[0]
    env = [{"name": "MARKER", "value": "left-behind"}]
    script = "trap '' TERM; echo up; sleep 1000 & sleep 1000"
    memory = [{"name": "m", "emptyDir": {"medium": "Memory"}}]
    mount = [{"name": "m", "mountPath": "/memory"}]
    create(twin, pod("orphan", container(script, env=env, volumeMounts=mount), volumes=memory))
    wait_for("the pod to run", lambda: "up" in logs(twin, "orphan"))
    members = members_of(twin)
    assert set(processes_with("MARKER=left-behind")) <= members
    assert len(members) > 8
    ports = {port for _, port in listeners_of(twin)}
    os.kill(twin.supervisor(), signal.SIGKILL)
    wait_for("every process to end", lambda: not any(map(is_alive, members)), 15)
    assert not processes_with("MARKER=left-behind")
    assert not ports & {port for _, port, _ in listeners()}
    assert str(twin.directory) not in Path("/proc/self/mountinfo").read_text()
    twin.down()
    assert not twin.directory.exists()


def test_an_interrupted_start_leaves_nothing():
    name = f"test-interrupted-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_local", "up", "--name", name, "--nodes", "0"],
        preexec_fn=die_with_parent,
        stderr=subprocess.PIPE,
    )
    wait_for("the cluster to start", lambda: Cluster(name).supervisor())
    holder = Cluster(name).supervisor()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stderr.close()
    assert not is_alive(holder)
    assert not Cluster(name).directory.exists()


def test_a_failed_start_leaves_only_its_logs_and_settings(monkeypatch):
    name = f"test-failing-{os.getpid()}"
    monkeypatch.setattr("finetune_local.cluster._READY_SECONDS", 0.0)
    with pytest.raises(ClusterError, match="did not become ready"):
        Cluster.up(name, nodes=0, tied=True)
    left = {path.name for path in Cluster(name).directory.iterdir()}
    assert left == {"logs", "cluster.json"}
    Cluster(name).down()


def test_only_files_of_dead_clusters_are_removed():
    prefix = f"test-dead-{os.getpid()}"
    running = Cluster(f"{prefix}-a")
    dead = Cluster(f"{prefix}-b")
    settings = '{"name": "x", "api_port": 1, "pod_network": "", "devices": 1, "nodes": 0}'
    for cluster in (running, dead):
        cluster.directory.mkdir()
    with subprocess.Popen(["sh", "-c", "sleep 100; :", "sh", str(running.directory)]) as holder:
        try:
            # This comes first, because other test processes may remove dead clusters at any moment.
            (running.directory / "supervisor.pid").write_text(str(holder.pid))
            for cluster in (running, dead):
                (cluster.directory / "cluster.json").write_text(settings)
            clusters.remove_dead(prefix)
            assert (running.directory.exists(), dead.directory.exists()) == (True, False)
        finally:
            holder.kill()
    clusters.remove_dead(prefix)
    assert not running.directory.exists()


def test_a_zombie_counts_as_gone(tmp_path):
    """The process that takes a cluster down need not be the parent of its processes."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    assert not is_alive(child.pid)
    wait_gone(child.pid, tmp_path, seconds=1)
    with suppress(ChildProcessError):
        child.wait()


def test_run_with_cluster_ends_when_another_cluster_takes_the_name(monkeypatch):
    """The operator of the old cluster must not continue with the files of the new one."""
    from finetune_local.demo import run_with_cluster

    holders = iter([100, 100, 200, 200, 200, 200])
    monkeypatch.setattr(Cluster, "supervisor", lambda _: next(holders))
    monkeypatch.setattr(sys, "argv", ["run_with_cluster", "demo", "sleep", "100"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_with_cluster.main() == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def members_of(cluster: Cluster) -> set[int]:
    """Return every process in the cluster's PID namespace and in those below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = set(), [cluster.supervisor()]
    while todo:
        found.add(pid := todo.pop())
        todo += children.get(pid, [])
    return found


def listeners_of(cluster: Cluster) -> set[tuple[str, int]]:
    inodes = set()
    for pid in members_of(cluster):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    return {(address, port) for address, port, inode in listeners() if inode in inodes}


def listeners() -> Iterator[tuple[str, int, str]]:
    """Yield address, port and inode of every listening socket of this machine."""
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, port = fields[1].split(":")
                if family == "tcp":
                    address = ".".join(str(b) for b in reversed(bytes.fromhex(address)))
                yield address, int(port, 16), fields[9]
