"""Which job owns a run's storage: `run.json`, made by the prepare pod, read by every attempt.

A job owns its storage until it has ended for good: also while it is suspended, and between two
attempts. Only then may another job continue the run.
"""

import time
from collections.abc import Collection

from finetune_api import reasons
from finetune_api.exit_codes import MEANINGS, ExitCode
from finetune_api.storage import AttemptFile, RunFile
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.files import write_atomic, write_new
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.run_dir.records import REFRESH_SECONDS

_ALIVE_SECONDS = 3 * REFRESH_SECONDS  # without a write, after which a gang must be dead
_ENDS_JOB = {found.reason for found in MEANINGS.values() if found.permanent}
_ELSEWHERE = "choose another folder for checkpoints.storage"

Unfinished = Collection[str] | None
"""Uids of other jobs on this storage that have not ended. None: the operator does not say."""


def claim(
    paths: RunPaths, mine: RunFile, on_existing: str, unfinished: Unfinished, earlier_digest: str
) -> str:
    """Create run.json as `mine`, or verify that the existing one belongs to the same job.

    The storage of another job's run is taken over if `on_existing` (checkpoints.onExisting) is
    Resume, both runs have the same digest and that job has ended. Raises TrainerError 69 if it has
    not, 73 if this job may not continue that run at all, and 64 if this job's run began with
    another digest.

    Returns the digest of the run, which is `earlier_digest` if the run began under an earlier
    version: its checkpoints have that digest.
    """
    if write_new(paths.run_file, mine.to_json()):
        return mine.run_digest
    found = _read(paths)
    if found.run_digest == earlier_digest:
        mine = mine.replace(run_digest=earlier_digest)
    if found.job_uid != mine.job_uid:
        _check_continues(paths, found, mine, on_existing)
        _take_over(paths, found, mine, unfinished)
    elif found.run_digest != mine.run_digest:
        if any(paths.storage.glob("fence.*")):
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{paths.storage_uri}: model, data or training changed since this run "
                "began; make a new job with another checkpoints.storage",
            )
        # The spec was corrected before the first attempt, so nothing was trained yet.
        paths.run_file.unlink(missing_ok=True)
        # Another job may create it first: check again.
        return claim(paths, mine, on_existing, unfinished, earlier_digest)
    return mine.run_digest


def digest_on_storage(paths: RunPaths) -> str | None:
    """Return the digest of the run that the storage holds, or None if it holds none."""
    try:
        return _read(paths).run_digest
    except FileNotFoundError:
        return None


def check(paths: RunPaths, mine: RunFile, unfinished: Unfinished) -> None:
    """Verify, before an attempt claims the fence, that the storage belongs to this job.

    If another job has taken this job's run over and has ended, this job takes it back. Raises
    TrainerError 69 if that job has not ended, 64 if it has begun another run, and 78 if run.json is
    missing, because an attempt on an empty volume would start at the first step.
    """
    where = paths.storage_uri
    try:
        found = _read(paths)
    except FileNotFoundError as error:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"{where}: run.json is missing; this is not the volume on which the run began, or it "
            "was emptied. Restore it, or make a new job",
        ) from error
    if found.job_uid != mine.job_uid:
        if found.run_digest != mine.run_digest:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{_belongs(paths, found)}; the run of this job is not there any more",
                reason=reasons.STORAGE_OCCUPIED,
            )
        _take_over(paths, found, mine, unfinished)
    if found.forward_pass == "Document" and mine.forward_pass != "Document":
        # An operator of an earlier version does not know the field, and packed rows would be wrong.
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            "this model is trained one document at a time, which the plan of the job does not say "
            "(plan.forwardPass); update the operator",
        )


def _read(paths: RunPaths) -> RunFile:
    try:
        return RunFile.model_validate_json(paths.run_file.read_text())
    except ValueError as error:
        raise TrainerError(
            ExitCode.STORAGE_NOT_WRITABLE,
            f"{paths.storage_uri}: run.json cannot be read; remove it if no run is using "
            "this folder",
        ) from error


def _belongs(paths: RunPaths, found: RunFile) -> str:
    return (
        f"{paths.storage_uri} belongs to another run (job {found.job_namespace}/"
        f"{found.job_name}, uid {found.job_uid})"
    )


def _check_continues(paths: RunPaths, found: RunFile, mine: RunFile, on_existing: str) -> None:
    """Raise TrainerError 73 if a job may not continue the run that the storage holds."""
    where = _belongs(paths, found)
    if on_existing == "Refuse":
        text = f"{where}; {_ELSEWHERE}, or remove this one"
        if found.run_digest == mine.run_digest:
            text += ", or set checkpoints.onExisting to Resume to go on where it stopped"
        raise _occupied(text)
    if found.run_digest != mine.run_digest:
        raise _occupied(
            f"{where} with another model, data or training, which onExisting Resume cannot "
            f"continue; use the model, data and training of that run, or {_ELSEWHERE}"
        )


def _take_over(paths: RunPaths, found: RunFile, mine: RunFile, unfinished: Unfinished) -> None:
    """Replace the owner of a run. Raises TrainerError 69 if it has not ended."""
    if why := _goes_on(paths, found, unfinished):
        raise TrainerError(
            ExitCode.STORAGE_IN_USE,
            f"{paths.storage_uri} belongs to job {found.job_namespace}/{found.job_name} (uid "
            f"{found.job_uid}), {why}; this job waits until that one has ended: wait, delete "
            f"that job, or {_ELSEWHERE}",
        )
    write_atomic(paths.run_file, mine.to_json())


def _goes_on(paths: RunPaths, owner: RunFile, unfinished: Unfinished) -> str | None:
    """Return why the owner of a run must be taken to go on with it, or None if it has ended.

    The operator knows whether a job has ended. Where it does not say so, the newest record on
    storage decides. In any case a gang that has just written is alive: the job may be one that this
    operator does not see, and its pods may outlive it. A gang that is wrongly taken for dead does
    no harm, because the next gang holds the fence.
    """
    if unfinished is not None and owner.job_uid in unfinished:
        return "which has not ended"
    newest = fence.newest(paths)
    if newest is None:
        return None
    writes = [paths.fence(newest.epoch).stat().st_mtime]
    record = _record(paths, newest.epoch)  # None in its first minute
    if record is not None:
        if record.outcome is not None:
            if unfinished is not None or _has_ended(record):
                return None
            return f"whose newest attempt is {record.outcome} and may be followed by another"
        writes.append(record.update_time.timestamp())
    age = max(1.0, time.time() - max(writes))
    return f"which was active {age:.0f} s ago" if age < _ALIVE_SECONDS else None


def _record(paths: RunPaths, epoch: int) -> AttemptFile | None:
    try:
        return AttemptFile.model_validate_json(paths.attempt(epoch).read_bytes())
    except (OSError, ValueError):
        return None


def _has_ended(record: AttemptFile) -> bool:
    """Return whether no attempt follows the one of a record."""
    if record.run_has_ended is None:  # of an earlier version
        return record.outcome == "Succeeded" or record.reason in _ENDS_JOB
    return record.run_has_ended


def _occupied(text: str) -> TrainerError:
    return TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text, reason=reasons.STORAGE_OCCUPIED)
