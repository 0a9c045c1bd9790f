"""Logs in the format of container runtimes: `TIME stdout F line`, P for a part of a line."""

from datetime import datetime
from pathlib import Path


class Reader:
    """Turns entries into what was asked for; keeps track of lines that come in parts."""

    def __init__(self, *, timestamps: bool = False, since: datetime | None = None) -> None:
        self._timestamps, self._since = timestamps, since
        self._inside_line = False

    def text(self, entry: bytes) -> bytes:
        """What to show of one entry (with its end of line); nothing of one that is too old."""
        stamp, _, tag, line = entry.split(b" ", 3)
        if self._since and _moment(stamp) < self._since:
            return b""
        head = stamp + b" " if self._timestamps and not self._inside_line else b""
        self._inside_line = tag == b"P"
        return head + (line.removesuffix(b"\n") if self._inside_line else line)


def _moment(stamp: bytes) -> datetime:
    # Nanoseconds are written, microseconds are known.
    return datetime.fromisoformat(stamp.decode()[:26] + "+00:00")


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` entries of a file begin."""
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
    """At most so many lines and bytes from the end, as they were written."""
    with path.open("rb") as file:
        file.seek(tail_offset(path, lines))
        reader = Reader()
        text = b"".join(reader.text(entry) for entry in file if entry.endswith(b"\n"))
    return text[-limit:].removesuffix(b"\n")
