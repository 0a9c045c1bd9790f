"""Reads logs in the format of container runtimes: `TIME stdout F line`, or P for a part of one."""

from datetime import datetime
from pathlib import Path


class Reader:
    """Converts entries to text, with the options of `kubectl logs`; joins the parts of lines."""

    def __init__(self, *, timestamps: bool = False, since: datetime | None = None) -> None:
        self._timestamps, self._since = timestamps, since
        self._inside_line = False

    def text(self, entry: bytes) -> bytes:
        """Return the text of one entry, with its end of line; nothing if the entry is too old."""
        timestamp, _, tag, line = entry.split(b" ", 3)
        if self._since and _parse_time(timestamp) < self._since:
            return b""
        head = timestamp + b" " if self._timestamps and not self._inside_line else b""
        self._inside_line = tag == b"P"
        return head + (line.removesuffix(b"\n") if self._inside_line else line)


def _parse_time(timestamp: bytes) -> datetime:
    # The log has nanoseconds; datetime has microseconds.
    return datetime.fromisoformat(timestamp.decode()[:26] + "+00:00")


def tail_offset(path: Path, lines: int) -> int:
    """Return the offset in bytes at which the last `lines` entries of a file begin."""
    if lines <= 0:
        return path.stat().st_size
    data = path.read_bytes()
    position = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return 0
    return position + 1


def last_lines(path: Path, lines: int, limit: int) -> bytes:
    """Return at most so many lines and bytes of the container's output from its end."""
    with path.open("rb") as file:
        file.seek(tail_offset(path, lines))
        reader = Reader()
        text = b"".join(reader.text(entry) for entry in file if entry.endswith(b"\n"))
    return text[-limit:].removesuffix(b"\n")
