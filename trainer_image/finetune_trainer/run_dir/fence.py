"""The fence: only the attempt with the largest epoch may write to a run's storage.

The absence of old pods does not prove that their processes are dead: the pods of a lost node are
deleted without a confirmation that they stopped. Therefore each attempt claims the next epoch by
creating a file exclusively. It calls `check` before every write that cannot be undone: publishing a
checkpoint, marking and removing checkpoints, publishing the exported model.
"""

from finetune_api.exit_codes import ExitCode
from finetune_api.storage import FenceFile
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir.files import refresh, write_new
from finetune_trainer.run_dir.paths import RunPaths


def newest(paths: RunPaths) -> FenceFile | None:
    """Return the fence file with the largest epoch, or None before the first attempt.

    A list of files can be older than the files: epochs have no gaps, so the next ones are looked
    for by name.
    """
    refresh(paths.storage)
    listed = [path.suffix[1:] for path in paths.storage.glob("fence.*")]
    epoch = max((int(suffix) for suffix in listed if suffix.isdigit()), default=0)
    while paths.fence(epoch + 1).exists():
        epoch += 1
    if epoch == 0:
        return None
    return FenceFile.model_validate_json(paths.fence(epoch).read_text())


def claim(paths: RunPaths, job_uid: str, attempt: int) -> int:
    """Claim the next epoch for an attempt and return it.

    Raises TrainerError 79 if a newer attempt of the same job has claimed one already.
    """
    while True:
        found = newest(paths)
        if found is not None and found.job_uid == job_uid and found.attempt > attempt:
            raise _fenced(attempt, found)
        epoch = found.epoch + 1 if found else 1
        mine = FenceFile(epoch=epoch, job_uid=job_uid, attempt=attempt)
        if write_new(paths.fence(epoch), mine.to_json()):
            return epoch


def check(paths: RunPaths, epoch: int, attempt: int) -> None:
    """Raise TrainerError 79 if an attempt with an epoch above `epoch` owns the storage."""
    found = newest(paths)
    if found is not None and found.epoch > epoch:
        raise _fenced(attempt, found)


def _fenced(attempt: int, found: FenceFile) -> TrainerError:
    return TrainerError(
        ExitCode.FENCED,
        f"attempt {attempt} must not write any more: attempt {found.attempt} owns the storage",
    )
