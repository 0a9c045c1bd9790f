"""Cleans up after an earlier agent of this node: its containers and folders of deleted pods."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from finetune_local.node import volumes
from finetune_local.node.container import SHIM
from finetune_local.processes import command_of, is_alive

# A shim notices that its agent has ended, kills its container and records how it ended.
_TIMEOUT = 2.0  # s


def end_processes(state: Path) -> None:
    """Wait until no container of an earlier agent with this state folder runs; kill late ones."""
    deadline = time.monotonic() + _TIMEOUT
    while shims := _shims(state):
        if time.monotonic() > deadline:
            for pid in shims:  # the container of a shim ends with it
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _shims(state: Path) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _is_shim(command_of(pid), state) and is_alive(pid)]


def _is_shim(command: list[str], state: Path) -> bool:
    return str(SHIM) in command and Path(command[-1]).is_relative_to(state)


def remove_folders(pods: Path, keep: set[str]) -> None:
    """Delete the folders of pods that were deleted while no agent ran."""
    for folder in pods.glob("*"):
        if folder.name not in keep:
            volumes.remove(folder)
