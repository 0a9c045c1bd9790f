"""Kill and start single components of a running cluster, as failures of a machine would."""

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from finetune_local.machine import ClusterError
from finetune_local.processes import children_of, command_of, is_alive

_SECONDS = 15.0
PERIOD = 0.1  # s between two looks of the supervisor
HELD = "held"  # folder; the supervisor does not start a component that has a file here


class Components:
    """What the supervisor of one cluster keeps running: etcd, kube-apiserver, ..., NAME-node-1."""

    def __init__(self, folder: Path, supervisor: int) -> None:
        entries = json.loads((folder / "components.json").read_text())
        self._commands: dict[str, list[str]] = {e["name"]: e["command"] for e in entries}
        self._folder, self._supervisor = folder, supervisor

    def pid(self, name: str) -> int | None:
        """Process id as this machine counts, None while it is down."""
        if name not in self._commands:
            raise ClusterError(f"no component {name!r}; there are {', '.join(self._commands)}")
        for inner in children_of(self._supervisor):  # process 1 of the cluster's PID namespace
            for child in children_of(inner):
                if command_of(child) == self._commands[name]:
                    return child
        return None

    def kill(self, name: str, *, stay_down: bool) -> None:
        """SIGKILL, and wait until it is gone; the supervisor starts it again unless it is held."""
        if stay_down:
            self.pid(name)  # is there such a one?
            (self._folder / HELD).mkdir(exist_ok=True)
            (self._folder / HELD / name).touch()
        # The supervisor may be just about to start it, so held ones are looked for again.
        for _ in range(2 if stay_down else 1):
            if (pid := self.pid(name)) is not None:
                os.kill(pid, signal.SIGKILL)
                _until(partial(_is_gone, pid), f"{name} is still there")
            if stay_down:
                time.sleep(PERIOD)

    def start(self, name: str) -> None:
        """Let the supervisor start it, and wait until it has; not until it is ready."""
        self.pid(name)  # is there such a one?
        (self._folder / HELD / name).unlink(missing_ok=True)
        _until(lambda: self.pid(name) is not None, f"{name} was not started")


def _is_gone(pid: int) -> bool:
    return not is_alive(pid)


def _until(check: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not check():
        if time.monotonic() > deadline:
            raise ClusterError(f"{otherwise} after {_SECONDS:.0f} s")
        time.sleep(0.05)
