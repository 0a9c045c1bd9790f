"""Where the things of a run lie inside the pod: the one place that knows the layout on storage."""

import os
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_api.uri import ClaimPath
from finetune_trainer.errors import TrainerError


@dataclass(frozen=True)
class RunPaths:
    """Folders and files of one run, as paths in this pod."""

    model: Path
    storage: Path
    cache: Path
    storage_uri: str

    @classmethod
    def of(cls, config: RunConfig) -> "RunPaths":
        """Resolve the pvc:// addresses of a run through its mounts."""
        storage = resolve(config, config.checkpoints.storage)
        return cls(
            model=resolve(config, config.model.source),
            storage=storage,
            cache=resolve(config, config.cache) if config.cache else storage / "cache",
            storage_uri=config.checkpoints.storage.rstrip("/"),
        )

    @property
    def run_file(self) -> Path:
        """Whose storage this is."""
        return self.storage / "run.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.storage / "checkpoints"

    @property
    def final(self) -> Path:
        """The finished Hugging Face folder."""
        return self.storage / "final"

    @property
    def evaluations(self) -> Path:
        """What was measured on held-out data."""
        return self.storage / "evaluations.json"

    def fence(self, epoch: int) -> Path:
        """Who may write, from this epoch on."""
        return self.storage / f"fence.{epoch}"

    @property
    def attempts(self) -> Path:
        """One record an attempt."""
        return self.storage / "attempts"

    def attempt(self, epoch: int) -> Path:
        """What the attempt that holds this epoch did."""
        return self.attempts / f"{epoch}.json"

    @property
    def logs(self) -> Path:
        """Every step of every attempt, as JSON lines."""
        return self.storage / "log"

    def log(self, epoch: int) -> Path:
        """The steps of the attempt that holds this epoch."""
        return self.logs / f"{epoch}.jsonl"

    def checkpoint(self, step: int, epoch: int) -> Path:
        """The epoch is in the name: two gangs never open the same file."""
        return self.checkpoints / f"step-{step:08d}-e{epoch:04d}"

    def prepared(self, digest: str) -> Path:
        """Packed rows, shared by every job with the same digest."""
        return self.cache / "prepared" / digest

    def uri(self, path: Path) -> str:
        """The pvc:// address of something below storage."""
        return f"{self.storage_uri}/{path.relative_to(self.storage)}"


def resolve(config: RunConfig, uri: str) -> Path:
    """Path in this pod of a pvc:// address; TrainerError 64 when a link leads out of the claim.

    Somebody who may write to a claim could otherwise have the pod read what is not on the claim.
    """
    address = ClaimPath.parse(uri)
    mount = config.mounts.get(address.claim)
    if mount is None:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{uri}: the claim {address.claim!r} is not mounted in this pod",
        )
    path = Path(address.under(config.mounts))
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(mount)):
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{uri}: a link leads out of the claim; copy the file onto the claim",
        )
    return path
