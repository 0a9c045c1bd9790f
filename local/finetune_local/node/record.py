"""What the folder of a container tells about it: it outlives the agent that started it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_local.node.logfile import last_lines

_MESSAGE_BYTES = 4096
_LOG_LINES, _LOG_BYTES = 80, 2048  # FallbackToLogsOnError, as the kubelet does it
_KILLED = 137


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    exit_code: int
    started: datetime
    finished: datetime
    message: str
    never_began: bool = False

    @property
    def reason(self) -> str:
        """As the kubelet names it."""
        if self.never_began:
            return "StartError"
        return "Completed" if self.exit_code == 0 else "Error"


def log_file(folder: Path) -> Path:
    """Its output, in the format of container runtimes."""
    return folder / "log"


def termination_file(folder: Path) -> Path:
    """What the container may write its last words to."""
    return folder / "termination-log"


def begin(folder: Path, now: datetime) -> None:
    """Note that a container is started; its folder is as good as new."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ended.json").unlink(missing_ok=True)
    termination_file(folder).write_bytes(b"")
    (folder / "started").write_text(now.isoformat())


def started(folder: Path) -> datetime | None:
    """When it was started, None when it never was."""
    try:
        return datetime.fromisoformat((folder / "started").read_text())
    except (FileNotFoundError, ValueError):
        return None


def ended(folder: Path, since: datetime, *, fall_back_to_logs: bool) -> Ended:
    """How a container ended that runs no more; whoever leaves no note was killed."""
    try:
        note = json.loads((folder / "ended.json").read_text())
    except FileNotFoundError:
        note = {"exit_code": _KILLED, "finished": datetime.now(UTC).isoformat()}
    code, error = note["exit_code"], note.get("start_error", "")
    message = error or _last_words(folder, failed=code != 0, fall_back=fall_back_to_logs)
    return Ended(code, since, datetime.fromisoformat(note["finished"]), message, bool(error))


def _last_words(folder: Path, *, failed: bool, fall_back: bool) -> str:
    with termination_file(folder).open("rb") as file:
        written = file.read(_MESSAGE_BYTES)
    if not written and failed and fall_back and log_file(folder).exists():
        written = last_lines(log_file(folder), _LOG_LINES, _LOG_BYTES)
    return written.decode(errors="replace")
