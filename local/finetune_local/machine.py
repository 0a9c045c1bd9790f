"""Checks what a machine must have before anything is downloaded or started.

Uses only the standard library, because `make setup` runs these checks before it installs packages.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune_local.cache import clusters_folder

GB = 1000**3
_PR_SET_PDEATHSIG = 1
# Without them Docker's seccomp filter forbids namespaces, and its masks of /proc a new /proc.
_CONTAINER_FLAGS = (
    "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)


class ClusterError(Exception):
    """An operation on a cluster failed. The message explains what to do."""


@dataclass(frozen=True)
class Need:
    """Bytes that will be written below a folder, and their purpose."""

    what: str
    size: int
    folder: Path  # need not exist yet


def no_namespaces() -> str | None:
    """Return why pods cannot run on this machine and what to do, or None if they can."""
    if not sys.platform.startswith("linux"):
        return f"the local cluster runs only on Linux; this is {sys.platform}"
    if shutil.which("unshare") is None:
        return "the program unshare (package util-linux) is not on the PATH"
    probe = ["unshare", "--user", "--map-root-user", "--pid", "--mount", "--fork", "--mount-proc"]
    done = subprocess.run([*probe, "true"], check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (
        f"the kernel refuses user namespaces ({done.stderr.strip()}). Allow them: "
        "sysctl -w user.max_user_namespaces=15000, and on Ubuntu also "
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0. "
        f"In a container, start it with: {_CONTAINER_FLAGS} (or --privileged)"
    )


def cluster_needs() -> list[Need]:
    """Return the disk space of one cluster: etcd, logs and what pods write outside of claims."""
    return [Need("cluster", 1 * GB, clusters_folder())]


def no_room(needs: Iterable[Need]) -> str | None:
    """Return which file system has too little space for its needs, or None if all fit."""
    file_systems: dict[int, list[Need]] = {}
    for need in needs:
        file_systems.setdefault(os.stat(_existing(need.folder)).st_dev, []).append(need)
    for together in file_systems.values():
        wanted = sum(need.size for need in together)
        free = shutil.disk_usage(_existing(together[0].folder)).free
        if free < wanted:
            parts = "; ".join(f"{n.what} {n.size / GB:.1f} GB in {n.folder}" for n in together)
            return (
                f"{free / GB:.1f} GB of disk are free, {wanted / GB:.1f} GB are needed: {parts}. "
                "Free some space, or use folders on another disk (FINETUNE_CACHE is the folder of "
                "packages and of the control plane)"
            )
    return None


def no_memory(what: str, size: int, meminfo: Path = Path("/proc/meminfo")) -> str | None:
    """Return how much memory is missing for `size` bytes, or None if they fit.

    Free swap counts: what other programs do not use meanwhile can move there.
    """
    lines = (line.split() for line in meminfo.read_text().splitlines())
    found = {fields[0].rstrip(":"): int(fields[1]) * 1024 for fields in lines}
    memory, swap = found["MemAvailable"], found["SwapFree"]
    if memory + swap >= size:
        return None
    return (
        f"{memory / GB:.1f} GB of memory and {swap / GB:.1f} GB of swap are available, "
        f"{what} needs {size / GB:.1f} GB. End other programs, or add swap"
    )


def _existing(folder: Path) -> Path:
    """Return the folder or its nearest existing parent, which is on the same file system."""
    while not folder.exists():
        folder = folder.parent
    return folder


def check_machine() -> None:
    """Raise ClusterError if this machine cannot run a local cluster."""
    if refused := no_namespaces() or no_room(cluster_needs()):
        raise ClusterError(refused)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; call it between fork and exec."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
