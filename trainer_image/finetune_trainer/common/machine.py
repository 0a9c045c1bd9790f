"""What this container may use of its machine: processors, memory and GPUs, found without torch."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMORY_LIMIT_FILES = ("memory.max", "memory/memory.limit_in_bytes")  # cgroup versions 2 and 1
_NO_LIMIT = 1 << 60  # version 1 reports "no limit" as a huge number

GPU_CONTROL_DEVICE = Path("/dev/nvidiactl")
"""The device file that NVIDIA's container runtime adds together with every GPU."""


def has_gpus() -> bool:
    """Return whether the container has at least one NVIDIA GPU, usable by torch or not."""
    return GPU_CONTROL_DEVICE.exists()


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """Return the number of processors that this container may use, at least 1.

    The CPU limit of a pod is a quota: the affinity still shows every core of the node.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cpu_quota(cgroup: Path) -> float | None:
    """Return the quota in cores, or None without a limit."""
    try:  # version 2: "max 100000" or "200000 100000"
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not limit.isdigit():  # "max", or -1 in version 1
        return None
    return int(limit) / int(period)


def available_memory(cgroup: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes that can be allocated without an out-of-memory kill, or 0 if unknown.

    This is the smaller of the machine's available memory and of what the container's limit leaves.
    File pages that the kernel can drop count as free.
    """
    found = [_available_on_machine(meminfo), _available_in_container(cgroup)]
    known = [amount for amount in found if amount is not None]
    return max(0, min(known, default=0))


def _available_on_machine(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _available_in_container(cgroup: Path) -> int | None:
    limit = memory_limit(cgroup)
    if limit is None:
        return None
    try:
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return limit - used + int(stat.get("inactive_file", 0))


def memory_limit(cgroup: Path = _CGROUP) -> int | None:
    """Return the container's memory limit in bytes, or None without one."""
    for name in _MEMORY_LIMIT_FILES:
        try:
            text = (cgroup / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None
    return None
