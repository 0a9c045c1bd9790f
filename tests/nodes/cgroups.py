"""The cgroups of the machines. They are the only thing that outlives a killed test run."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_GROUP = "finetune-nodes"
_UNIFIED = _ROOT / "cgroup.controllers"  # exists only with cgroup v2


def create(machine: str) -> str:
    """Create the cgroup of a machine in every hierarchy, and return its path for the kubelet."""
    for hierarchy in _hierarchies():
        folder = hierarchy / _GROUP / machine
        folder.mkdir(parents=True, exist_ok=True)
        if _UNIFIED.exists():
            controllers = " ".join(f"+{name}" for name in _UNIFIED.read_text().split())
            for parent in (hierarchy, folder.parent, folder):
                (parent / "cgroup.subtree_control").write_text(controllers)
    return f"/{_GROUP}/{machine}"


def remove(seconds: float = 15) -> None:
    """Remove the cgroups of all machines, whose processes have been killed."""
    deadline = time.monotonic() + seconds
    # Beside the hierarchies of cgroup v1 there may be one of v2, in which runc creates groups, too.
    groups = [folder / _GROUP for folder in (_ROOT, *_ROOT.iterdir())]
    while left := [group for group in groups if group.exists()]:
        for group in left:
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):  # a process in it has not ended yet
                    Path(folder).rmdir()
        assert time.monotonic() < deadline, f"cgroups are still in use: {left}"
        time.sleep(0.1)


def _hierarchies() -> Iterator[Path]:
    if _UNIFIED.exists():
        yield _ROOT
        return
    for folder in _ROOT.iterdir():
        if folder.is_dir() and folder.name != "unified":
            yield folder
