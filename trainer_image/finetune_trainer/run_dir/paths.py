"""Where the things of a run lie inside the pod: the one place that knows the layout on storage."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_api.uri import ClaimPath, HubPath, is_claim, parse
from finetune_trainer.common.errors import TrainerError


@dataclass(frozen=True)
class RunPaths:
    """Folders and files of one run, as paths in this pod."""

    model: Path
    storage: Path
    cache: Path
    storage_uri: str

    @classmethod
    def of(cls, config: RunConfig) -> "RunPaths":
        """Resolve the addresses of a run through its mounts.

        TrainerError 64 for a model that must be downloaded and was not resolved yet.
        """
        return cls(
            model=_model_folder(config),
            storage=resolve(config, config.checkpoints.storage),
            cache=cache_folder(config),
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


def cache_folder(config: RunConfig) -> Path:
    """Downloads and prepared data, shared by the jobs that name it."""
    if config.cache:
        return resolve(config, config.cache)
    return resolve(config, config.checkpoints.storage) / "cache"


def cache_name(config: RunConfig) -> str:
    """What people call the cache."""
    return config.cache or f"{config.checkpoints.storage.rstrip('/')}/cache"


def cached_model(config: RunConfig, revision: str) -> Path:
    """Where a downloaded model lies: named by what it was resolved to, not by where it came from.

    A folder of a repository has a name of its own: its commit is that of the whole.
    """
    address = parse(config.model.source)
    name = revision
    if isinstance(address, HubPath) and address.path:
        name += f"-{hashlib.sha256(address.path.encode()).hexdigest()[:8]}"
    return cache_folder(config) / "models" / name


def check_cached(config: RunConfig, folder: Path) -> None:
    """TrainerError 66 when a downloaded model is no longer where the prepare pod put it."""
    if not is_claim(config.model.source) and not folder.is_dir():
        raise TrainerError(
            ExitCode.INPUT_MISSING,
            f"{config.model.source}: {cache_name(config)}/models/{folder.name} is gone; keep the "
            "cache while a job runs, or make a new job, which downloads it again",
        )


def _model_folder(config: RunConfig) -> Path:
    if is_claim(config.model.source):
        return resolve(config, config.model.source)
    if config.model_revision is None:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{config.model.source}: the run configuration does not say what it was resolved to "
            "(modelRevision); update the operator",
        )
    return cached_model(config, config.model_revision)


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
