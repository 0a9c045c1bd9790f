"""How many processors this container may use: affinity, and the quota of its cgroup."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable(cgroup: Path = _CGROUP) -> int:
    """At least 1. A pod's CPU limit is a quota: affinity still shows every core of the node."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores, None where there is no limit."""
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
