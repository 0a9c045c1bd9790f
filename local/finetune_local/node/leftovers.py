"""What an agent that was killed has left behind: nothing of it may run on."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from finetune_local.node import volumes
from finetune_local.node.container import SHIM
from finetune_local.processes import command_of, is_alive

_SECONDS = 2.0  # shims notice by themselves that the agent is gone, and write it down


def end_processes(state: Path) -> None:
    """Return when no container runs that an agent with this state folder has started."""
    deadline = time.monotonic() + _SECONDS
    while shims := _shims(state):
        if time.monotonic() > deadline:
            for pid in shims:  # its container dies with it
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _shims(state: Path) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _is_shim(command_of(pid), state) and is_alive(pid)]


def _is_shim(command: list[str], state: Path) -> bool:
    return str(SHIM) in command and Path(command[-1]).is_relative_to(state)


def remove_folders(pods: Path, keep: set[str]) -> None:
    """Delete the folders of pods that were deleted while no agent looked."""
    for folder in pods.glob("*"):
        if folder.name not in keep:
            volumes.remove(folder)
