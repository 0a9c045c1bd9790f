"""How much memory this container may use."""

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_FILES = ("memory.max", "memory/memory.limit_in_bytes")  # versions 2 and 1
_NO_LIMIT = 1 << 60  # version 1 says "none" by a huge number


def limit(cgroup: Path = _CGROUP) -> int | None:
    """Bytes, None where there is no limit."""
    for name in _FILES:
        try:
            text = (cgroup / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None
    return None
