"""Records on storage: of attempts (attempts/), and of the exported model (final/export.json).

Attempts leave records so that an operator outage loses nothing. The folder `final` is complete only
if it holds export.json.
"""

import contextlib
import logging
from datetime import datetime
from pathlib import Path

from finetune_api.base import Message
from finetune_api.names import MAX_ATTEMPTS
from finetune_api.progress import Output
from finetune_api.run import AttemptRecord
from finetune_api.storage import AttemptFile, RunFile
from finetune_trainer.run_dir.files import write_atomic
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger("records")
REFRESH_SECONDS = 60.0
"""Time between two writes of a running attempt's record."""
EXPORT_FILE = "export.json"
"""Name of the file in `final` that is written last."""


def write(paths: RunPaths, record: AttemptFile) -> None:
    """Replace the record of an attempt. An error is only logged, because training can go on."""
    try:
        write_atomic(paths.attempt(record.epoch), record.to_json())
    except OSError as error:
        _log.warning("the attempt's record could not be written: %s", error)


def keep_stderr(paths: RunPaths, attempt: int, name: str, text: str) -> None:
    """Save the end of a failed process's stderr, because pods and their logs may be deleted.

    `name` is the name of the process, such as "rank 0". An error is only logged.
    """
    file = paths.attempts / f"attempt-{attempt}-{name.replace(' ', '-')}.stderr"
    try:
        write_atomic(file, text)
    except OSError as error:
        _log.warning("%s could not be written: %s", file.name, error)


def earlier(paths: RunPaths, job_uid: str, attempt: int) -> list[AttemptRecord]:
    """Return the newest attempts of a job before `attempt`. Skips records that cannot be read."""
    found: dict[int, AttemptFile] = {}
    for file in sorted(paths.attempts.glob("*.json")):
        try:
            record = AttemptFile.model_validate_json(file.read_bytes())
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read: %s", file, error)
            continue
        known = found.get(record.attempt)
        if record.job_uid == job_uid and (known is None or known.epoch < record.epoch):
            found[record.attempt] = record
    newest = sorted(number for number in found if number < attempt)[-MAX_ATTEMPTS:]
    return [
        AttemptRecord(
            attempt=number, update_time=found[number].update_time, ledger=found[number].ledger
        )
        for number in newest
    ]


def first_start(paths: RunPaths) -> datetime | None:
    """Return when the first attempt of a run began. Skips records that cannot be read."""
    found = []
    for file in paths.attempts.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(AttemptFile.model_validate_json(file.read_bytes()).start_time)
    return min(found, default=None)


class Trained(Message):
    """The contents of `trained.json`: the run has a valid checkpoint of its last step."""

    run_digest: str
    step: int


def mark_trained(paths: RunPaths, run_digest: str, step: int) -> None:
    """Record that training is complete. An error is only logged, because the export can go on."""
    try:
        write_atomic(paths.trained, Trained(run_digest=run_digest, step=step).to_json())
    except OSError as error:
        _log.warning("%s could not be written: %s", paths.trained.name, error)


def unmark_trained(paths: RunPaths) -> None:
    """Record that the last steps have to be trained again."""
    with contextlib.suppress(OSError):
        paths.trained.unlink(missing_ok=True)


def trained_step(paths: RunPaths) -> int | None:
    """Return the last step of the run on this storage if its training is complete, else None."""
    try:
        found = Trained.model_validate_json(paths.trained.read_text())
        owner = RunFile.model_validate_json(paths.run_file.read_text())
    except (OSError, ValueError):
        return None
    return found.step if found.run_digest == owner.run_digest else None


class ExportCard(Message):
    """The contents of `final/export.json`. It exists only after the model was loaded back."""

    job_uid: str
    run_digest: str
    step: int
    size_bytes: int


def read_export(paths: RunPaths, job_uid: str, run_digest: str) -> Output | None:
    """Return the exported model of exactly this run, or None if it is missing or incomplete."""
    card = _complete_export(paths.final, job_uid, run_digest)
    if card is None:
        return None
    return Output(location=paths.uri(paths.final), size_bytes=card.size_bytes, verified=True)


def export_is_complete(folder: Path, job_uid: str, run_digest: str) -> bool:
    """Return whether a folder holds the complete exported model of exactly this run."""
    return _complete_export(folder, job_uid, run_digest) is not None


def _complete_export(folder: Path, job_uid: str, run_digest: str) -> ExportCard | None:
    try:
        card = ExportCard.model_validate_json((folder / EXPORT_FILE).read_text())
        present = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except (OSError, ValueError):
        return None
    if (card.job_uid, card.run_digest) != (job_uid, run_digest):
        return None
    return card if present >= card.size_bytes else None  # else weights were moved away
