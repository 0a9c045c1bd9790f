"""The storage of a run, as one attempt writes to it."""

from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.paths import RunPaths


@dataclass(frozen=True)
class RunStorage:
    """The storage of a run, and the attempt on whose behalf this process writes to it."""

    paths: RunPaths
    job_uid: str
    run_digest: str
    attempt: int
    fence_epoch: int

    def checkpoint(self, step: int) -> Path:
        """Return the folder of this attempt's checkpoint of a step."""
        return self.paths.checkpoint(step, self.fence_epoch)

    def check_fence(self) -> None:
        """Raise TrainerError (79) if a newer attempt owns the storage."""
        fence.check(self.paths, self.fence_epoch, self.attempt)
