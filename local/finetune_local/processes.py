"""Reads the processes of this machine from /proc."""

import os
import time
from contextlib import suppress
from pathlib import Path

from finetune_local.machine import ClusterError


def command_of(pid: int) -> list[str]:
    """Return the command line; empty if the process is gone or a zombie."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [os.fsdecode(argument) for argument in arguments[:-1]]


def children_of(process: int) -> list[int]:
    """Return the children of a process that has one thread, in the order of their start."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split()]


def is_alive(pid: int) -> bool:
    """Return whether the process still runs. A zombie does not, even if it was not waited for."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def wait_gone(pid: int, directory: Path, seconds: float = 15.0) -> None:
    """Wait until neither the process nor any process with the folder in its arguments is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if not is_alive(pid) and not _is_in_any_command(str(directory)):
            return
        time.sleep(0.05)
    raise ClusterError(f"processes of {directory} still run after {seconds:.0f} s")


def _is_in_any_command(folder: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(PermissionError):
                command = command_of(int(entry.name))
                if any(part == folder or folder + "/" in part for part in command):
                    return True
    return False
