"""What attempts write about themselves on storage, for an operator that was away (attempts/)."""

import logging

from finetune_api.run import AttemptRecord, RunConfig
from finetune_api.storage import AttemptFile
from finetune_trainer.run_dir.files import write_atomic
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger("records")
_MOST = 10


def write(paths: RunPaths, record: AttemptFile) -> None:
    """Replace the record of this attempt; one that cannot be written costs nothing but itself."""
    try:
        write_atomic(paths.attempt(record.epoch), record.to_json())
    except OSError as error:
        _log.warning("the attempt's record could not be written: %s", error)


def keep_stderr(paths: RunPaths, attempt: int, name: str, text: str) -> None:
    """The end of what a process that failed wrote; pods and their logs may be gone by then."""
    file = paths.attempts / f"attempt-{attempt}-{name.replace(' ', '-')}.stderr"
    try:
        write_atomic(file, text)
    except OSError as error:
        _log.warning("%s could not be written: %s", file.name, error)


def earlier(paths: RunPaths, config: RunConfig) -> list[AttemptRecord]:
    """The newest earlier attempts of this very job; a record that cannot be read is passed over."""
    found: dict[int, AttemptFile] = {}
    for file in sorted(paths.attempts.glob("*.json")):
        try:
            record = AttemptFile.model_validate_json(file.read_bytes())
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read: %s", file, error)
            continue
        known = found.get(record.attempt)
        if record.job_uid == config.job_uid and (known is None or known.epoch < record.epoch):
            found[record.attempt] = record
    newest = sorted(number for number in found if number < config.attempt)[-_MOST:]
    return [
        AttemptRecord(
            attempt=number, update_time=found[number].update_time, ledger=found[number].ledger
        )
        for number in newest
    ]
