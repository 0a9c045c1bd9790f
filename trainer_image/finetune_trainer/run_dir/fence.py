"""Who may write to a run's storage: the holder of the largest epoch.

"All old pods are gone" does not prove that old processes are dead: a lost node's pods are collected
without anybody confirming that they stopped. Each attempt claims the next epoch by an exclusive
create, and reads the fence again before whatever cannot be undone.
"""

from finetune_api.exit_codes import ExitCode
from finetune_api.storage import FenceFile
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir.files import write_new
from finetune_trainer.run_dir.paths import RunPaths


def newest(paths: RunPaths) -> FenceFile | None:
    """The fence with the largest epoch."""
    files = [path for path in paths.storage.glob("fence.*") if path.suffix[1:].isdigit()]
    if not files:
        return None
    latest = max(files, key=lambda path: int(path.suffix[1:]))
    return FenceFile.model_validate_json(latest.read_text())


def claim(paths: RunPaths, job_uid: str, attempt: int) -> int:
    """Claim the next epoch for an attempt and return it; TrainerError 79 for an old attempt."""
    while True:
        found = newest(paths)
        if found is not None and found.job_uid == job_uid and found.attempt > attempt:
            raise _fenced(attempt, found)
        epoch = found.epoch + 1 if found else 1
        mine = FenceFile(epoch=epoch, job_uid=job_uid, attempt=attempt)
        if write_new(paths.fence(epoch), mine.to_json()):
            return epoch


def check(paths: RunPaths, epoch: int, attempt: int) -> None:
    """TrainerError 79 when a newer attempt owns the storage."""
    found = newest(paths)
    if found is not None and found.epoch > epoch:
        raise _fenced(attempt, found)


def _fenced(attempt: int, found: FenceFile) -> TrainerError:
    return TrainerError(
        ExitCode.FENCED,
        f"attempt {attempt} must not write any more: attempt {found.attempt} owns the storage",
    )
