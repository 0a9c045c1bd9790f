"""Whose storage this is: `run.json`, made by the prepare pod and read by every attempt."""

import time

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_api.storage import AttemptFile, RunFile
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.files import write_atomic, write_new
from finetune_trainer.run_dir.paths import RunPaths

_ALIVE_SECONDS = 180  # a gang that runs writes its record every minute


def claim(config: RunConfig, paths: RunPaths, revision: str, run_digest: str) -> None:
    """Create run.json, or make sure that it is ours.

    TrainerError 73 when another run has the storage, unless `checkpoints.onExisting` is Resume, the
    run is the same one and nobody works at it; 64 when this run has begun as another one.
    """
    mine = RunFile(
        job_uid=config.job_uid,
        job_name=config.job_name,
        job_namespace=config.job_namespace,
        model_revision=revision,
        run_digest=run_digest,
    )
    if write_new(paths.run_file, mine.to_json()):
        return
    found = _read(config, paths)
    if found.job_uid != config.job_uid:
        _take_over(config, paths, found, mine)
    elif found.run_digest != run_digest:
        if any(paths.storage.glob("fence.*")):
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{config.checkpoints.storage}: model, data or training changed since this run "
                "began; make a new job with another checkpoints.storage",
            )
        # Nothing was trained yet: the spec was mended before the first attempt.
        paths.run_file.unlink(missing_ok=True)
        claim(config, paths, revision, run_digest)  # somebody else may be faster: look again


def check(config: RunConfig, paths: RunPaths) -> None:
    """Before an attempt takes the fence.

    TrainerError 64 when another job has taken the storage over, 78 when run.json is gone: an
    attempt on an empty volume would begin at the first step as if nothing had been trained.
    """
    where = config.checkpoints.storage
    try:
        found = _read(config, paths)
    except FileNotFoundError as error:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"{where}: run.json is gone; this is not the volume on which the run began, or it was "
            "emptied. Bring it back, or make a new job",
        ) from error
    if found.job_uid != config.job_uid:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{where} belongs to job {found.job_namespace}/{found.job_name} now (uid "
            f"{found.job_uid}), which goes on with this run (onExisting: Resume)",
            reason="StorageInUse",
        )


def _read(config: RunConfig, paths: RunPaths) -> RunFile:
    try:
        return RunFile.model_validate_json(paths.run_file.read_text())
    except ValueError as error:
        raise TrainerError(
            ExitCode.STORAGE_NOT_WRITABLE,
            f"{config.checkpoints.storage}: run.json cannot be read; remove it if no run is using "
            "this folder",
        ) from error


def _take_over(config: RunConfig, paths: RunPaths, found: RunFile, mine: RunFile) -> None:
    where = (
        f"{config.checkpoints.storage} belongs to another run (job {found.job_namespace}/"
        f"{found.job_name}, uid {found.job_uid})"
    )
    elsewhere = "choose another folder for checkpoints.storage"
    if config.checkpoints.on_existing == "Refuse":
        same = found.run_digest == mine.run_digest
        text = f"{where}; {elsewhere}, or remove this one"
        if same:
            text += ", or set checkpoints.onExisting to Resume to go on where it stopped"
        raise _in_use(text)
    if found.run_digest != mine.run_digest:
        raise _in_use(
            f"{where} with another model, data or training, which onExisting Resume cannot go on "
            f"with; name what it named, or {elsewhere}"
        )
    if seconds := _alive(paths):
        raise _in_use(
            f"{where}, which gave a sign of life {seconds:.0f} s ago; onExisting Resume waits for "
            "nobody: delete or suspend that job, and apply this one when it has ended"
        )
    write_atomic(paths.run_file, mine.to_json())


def _alive(paths: RunPaths) -> float | None:
    """Seconds since the newest gang's last sign of life; None when it ended or is long silent.

    A gang that is believed dead and is not does no harm: the next one holds the fence.
    """
    newest = fence.newest(paths)
    if newest is None:
        return None
    signs = [paths.fence(newest.epoch).stat().st_mtime]
    try:
        record = AttemptFile.model_validate_json(paths.attempt(newest.epoch).read_bytes())
    except (OSError, ValueError):
        pass  # it writes its first one after a minute
    else:
        if record.outcome is not None:
            return None
        signs.append(record.update_time.timestamp())
    silent = max(1.0, time.time() - max(signs))
    return silent if silent < _ALIVE_SECONDS else None


def _in_use(text: str) -> TrainerError:
    return TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text, reason="StorageInUse")
