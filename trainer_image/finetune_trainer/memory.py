"""How much memory of the host may still be taken (Linux)."""

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_FILES = ("memory.max", "memory/memory.limit_in_bytes")  # versions 2 and 1
_NO_LIMIT = 1 << 60  # version 1 says "none" by a huge number


def available(cgroup: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can be allocated without the kernel killing the container; 0 when unknown.

    The smaller of what the machine has and what the container's limit leaves; pages of files that
    can be dropped count as free.
    """
    found = [_machine(meminfo), _container(cgroup)]
    known = [amount for amount in found if amount is not None]
    return max(0, min(known, default=0))


def _machine(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container(cgroup: Path) -> int | None:
    most = limit(cgroup)
    if most is None:
        return None
    try:
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return most - used + int(stat.get("inactive_file", 0))


def limit(cgroup: Path = _CGROUP) -> int | None:
    """Bytes, None where there is no limit."""
    for name in _FILES:
        try:
            text = (cgroup / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None
    return None
