"""Processes of this machine, as /proc shows them."""

import os
import time
from contextlib import suppress
from pathlib import Path

from finetune_local.machine import ClusterError


def command_of(pid: int) -> list[str]:
    """Command line; empty when the process is gone, or a zombie."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [os.fsdecode(word) for word in words[:-1]]


def children_of(pid: int) -> list[int]:
    """Children of a process with one thread, in its parent's order."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split()]


def is_alive(pid: int) -> bool:
    """Whether it can still do something: a zombie cannot, whoever should have waited for it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def wait_gone(pid: int, directory: Path, seconds: float = 15.0) -> None:
    """Until neither the process nor anything that names the folder is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if not is_alive(pid) and not _any_process_names(str(directory)):
            return
        time.sleep(0.05)
    raise ClusterError(f"processes of {directory} are still there after {seconds:.0f} s")


def _any_process_names(folder: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(PermissionError):
                words = command_of(int(entry.name))
                if any(w == folder or folder + "/" in w for w in words):
                    return True
    return False
