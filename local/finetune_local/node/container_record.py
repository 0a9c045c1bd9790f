"""The record of a container in its folder, which outlives the agent that started it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_local.node.log_reader import last_lines

_MESSAGE_BYTES = 4096
_LOG_LINES, _LOG_BYTES = 80, 2048  # limits of FallbackToLogsOnError, as in the kubelet
KILLED = 137  # exit code of a container that was killed


@dataclass(frozen=True)
class Termination:
    """How a container ended."""

    exit_code: int
    started: datetime
    finished: datetime
    message: str
    failed_to_start: bool = False

    @property
    def reason(self) -> str:
        """The reason that the kubelet would give."""
        if self.failed_to_start:
            return "StartError"
        return "Completed" if self.exit_code == 0 else "Error"


def log_file(folder: Path) -> Path:
    """Return the file of the container's output, in the format of container runtimes."""
    return folder / "log"


def previous_log_file(folder: Path) -> Path:
    """Return the output of the container before it was started again."""
    return folder / "log.previous"


def termination_file(folder: Path) -> Path:
    """Return the file that is mounted as the container's termination message."""
    return folder / "termination-log"


def begin(folder: Path, now: datetime) -> None:
    """Record that a container is started, and keep only the log of an earlier start."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ended.json").unlink(missing_ok=True)
    if log_file(folder).exists():
        log_file(folder).rename(previous_log_file(folder))
    termination_file(folder).write_bytes(b"")
    (folder / "started").write_text(now.isoformat())


def start_time(folder: Path) -> datetime | None:
    """Return when the container was started, or None if it never was."""
    try:
        return datetime.fromisoformat((folder / "started").read_text())
    except (FileNotFoundError, ValueError):
        return None


def termination(folder: Path, since: datetime, *, fall_back_to_logs: bool) -> Termination:
    """Return how a container ended that was started at `since` and no longer runs.

    If its shim recorded nothing, it was killed.
    """
    try:
        end = json.loads((folder / "ended.json").read_text())
    except FileNotFoundError:
        end = {"exit_code": KILLED, "finished": datetime.now(UTC).isoformat()}
    code, error = end["exit_code"], end.get("start_error", "")
    message = error or _termination_message(folder, failed=code != 0, fall_back=fall_back_to_logs)
    finished = datetime.fromisoformat(end["finished"])
    return Termination(code, since, finished, message, bool(error))


def _termination_message(folder: Path, *, failed: bool, fall_back: bool) -> str:
    with termination_file(folder).open("rb") as file:
        written = file.read(_MESSAGE_BYTES)
    if not written and failed and fall_back and log_file(folder).exists():
        written = last_lines(log_file(folder), _LOG_LINES, _LOG_BYTES)
    return written.decode(errors="replace")
