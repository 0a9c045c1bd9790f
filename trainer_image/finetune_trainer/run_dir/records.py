"""Records that attempts leave on storage (attempts/), so that an operator outage loses nothing."""

import logging

from finetune_api.names import MAX_ATTEMPTS
from finetune_api.run import AttemptRecord
from finetune_api.storage import AttemptFile
from finetune_trainer.run_dir.files import write_atomic
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger("records")
REFRESH_SECONDS = 60.0
"""Time between two writes of a running attempt's record."""


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
