"""Which job owns a run's storage: `run.json`, made by the prepare pod, read by every attempt."""

import time

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_api.storage import AttemptFile, RunFile
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.files import write_atomic, write_new
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.run_dir.records import REFRESH_SECONDS

_ALIVE_SECONDS = 3 * REFRESH_SECONDS  # without a write, after which a gang must be dead


def claim(paths: RunPaths, mine: RunFile, on_existing: str) -> None:
    """Create run.json as `mine`, or verify that the existing one belongs to the same job.

    The storage of another job's run is taken over if `on_existing` (checkpoints.onExisting) is
    Resume, both runs have the same digest and no gang is working on it. Otherwise raises
    TrainerError 73. Raises TrainerError 64 if this job's run began with another digest.
    """
    if write_new(paths.run_file, mine.to_json()):
        return
    found = _read(paths)
    if found.job_uid != mine.job_uid:
        _take_over(paths, found, mine, on_existing)
    elif found.run_digest != mine.run_digest:
        if any(paths.storage.glob("fence.*")):
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{paths.storage_uri}: model, data or training changed since this run "
                "began; make a new job with another checkpoints.storage",
            )
        # The spec was corrected before the first attempt, so nothing was trained yet.
        paths.run_file.unlink(missing_ok=True)
        claim(paths, mine, on_existing)  # another job may create run.json first: check again


def check(paths: RunPaths, job_uid: str) -> None:
    """Verify, before an attempt claims the fence, that the storage belongs to this job.

    Raises TrainerError 64 if another job has taken the storage over. Raises TrainerError 78 if
    run.json is missing, because an attempt on an empty volume would start at the first step.
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
    if found.job_uid != job_uid:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{where} belongs to job {found.job_namespace}/{found.job_name} now (uid "
            f"{found.job_uid}), which continues this run (onExisting: Resume)",
            reason=reasons.STORAGE_IN_USE,
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


def _take_over(paths: RunPaths, found: RunFile, mine: RunFile, on_existing: str) -> None:
    where = (
        f"{paths.storage_uri} belongs to another run (job {found.job_namespace}/"
        f"{found.job_name}, uid {found.job_uid})"
    )
    elsewhere = "choose another folder for checkpoints.storage"
    if on_existing == "Refuse":
        text = f"{where}; {elsewhere}, or remove this one"
        if found.run_digest == mine.run_digest:
            text += ", or set checkpoints.onExisting to Resume to go on where it stopped"
        raise _in_use(text)
    if found.run_digest != mine.run_digest:
        raise _in_use(
            f"{where} with another model, data or training, which onExisting Resume cannot "
            f"continue; use the model, data and training of that run, or {elsewhere}"
        )
    if seconds := _seconds_since_activity(paths):
        raise _in_use(
            f"{where}, which was active {seconds:.0f} s ago; onExisting Resume does not wait: "
            "delete or suspend that job, and apply this one when it has ended"
        )
    write_atomic(paths.run_file, mine.to_json())


def _seconds_since_activity(paths: RunPaths) -> float | None:
    """Return the seconds since the newest gang wrote to storage.

    Returns None if that gang has ended, or has not written for so long that it must be dead. A gang
    that is wrongly taken for dead does no harm, because the next gang holds the fence.
    """
    newest = fence.newest(paths)
    if newest is None:
        return None
    writes = [paths.fence(newest.epoch).stat().st_mtime]
    try:
        record = AttemptFile.model_validate_json(paths.attempt(newest.epoch).read_bytes())
    except (OSError, ValueError):
        pass  # it writes its first record after a minute
    else:
        if record.outcome is not None:
            return None
        writes.append(record.update_time.timestamp())
    age = max(1.0, time.time() - max(writes))
    return age if age < _ALIVE_SECONDS else None


def _in_use(text: str) -> TrainerError:
    return TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text, reason=reasons.STORAGE_IN_USE)
