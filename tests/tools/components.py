"""Kills and starts single components of a running local cluster, as failures of a machine would.

A component is one process of the cluster: etcd, kube-apiserver, ..., or a node's agent, which is
named after the node (NAME-node-1). Killing an agent also kills the processes of its pods, as if the
machine were lost.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial

from finetune_local.cluster import Cluster
from finetune_local.machine import ClusterError
from finetune_local.processes import children_of, command_of, is_alive
from finetune_local.supervisor import HELD, PERIOD

_TIMEOUT = 15.0  # s


def pid(cluster: Cluster, name: str) -> int | None:
    """Return the process id of a component on this machine, or None while it is down."""
    command = _command(cluster, name)
    supervisor = cluster.supervisor()
    if supervisor is None:
        raise ClusterError(f"cluster {cluster.name!r} is down")
    for inner in children_of(supervisor):  # process 1 of the cluster's PID namespace
        for child in children_of(inner):
            if command_of(child) == command:
                return child
    return None


def kill(cluster: Cluster, name: str, *, stay_down: bool = False) -> None:
    """Send SIGKILL to a component and wait until it is gone.

    The supervisor starts it again soon, or, with `stay_down`, only after a call of `start`.
    """
    if stay_down:
        _command(cluster, name)  # raises ClusterError for an unknown name
        (cluster.directory / HELD).mkdir(exist_ok=True)
        (cluster.directory / HELD / name).touch()
    # The supervisor may be just about to start a component that must stay down, so check twice.
    for _ in range(2 if stay_down else 1):
        if (running := pid(cluster, name)) is not None:
            os.kill(running, signal.SIGKILL)
            _wait_until(partial(_is_gone, running), f"{name} is still running")
        if stay_down:
            time.sleep(PERIOD)


def start(cluster: Cluster, name: str) -> None:
    """Let the supervisor start a component again; return when its process exists."""
    _command(cluster, name)  # raises ClusterError for an unknown name
    (cluster.directory / HELD / name).unlink(missing_ok=True)
    _wait_until(lambda: pid(cluster, name) is not None, f"{name} was not started")


def _command(cluster: Cluster, name: str) -> list[str]:
    entries = json.loads((cluster.directory / "components.json").read_text())
    commands: dict[str, list[str]] = {entry["name"]: entry["command"] for entry in entries}
    if name not in commands:
        raise ClusterError(f"no component {name!r}; there are {', '.join(commands)}")
    return commands[name]


def _is_gone(process: int) -> bool:
    return not is_alive(process)


def _wait_until(check: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not check():
        if time.monotonic() > deadline:
            raise ClusterError(f"{failure} after {_TIMEOUT:.0f} s")
        time.sleep(0.05)
