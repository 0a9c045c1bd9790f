"""The layout of a run's storage and of the cache: the only module that knows it."""

import errno
import hashlib
import os
import stat
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
        """Translate the addresses of a run into paths.

        Raises TrainerError 64 if the model must be downloaded and the configuration does not
        contain its revision.
        """
        cache = Cache.of(config)
        return cls(
            model=_model_folder(config.model.source, config.model_revision, cache, config.mounts),
            storage=claim_path(config.checkpoints.storage, config.mounts),
            cache=cache.folder,
            storage_uri=config.checkpoints.storage.rstrip("/"),
        )

    @property
    def run_file(self) -> Path:
        """The file that names the owner of the storage."""
        return self.storage / "run.json"

    @property
    def checkpoints(self) -> Path:
        """The parent of all checkpoint folders."""
        return self.storage / "checkpoints"

    @property
    def final(self) -> Path:
        """The folder of the exported model."""
        return self.storage / "final"

    @property
    def evaluations(self) -> Path:
        """The history of evaluations."""
        return self.storage / "evaluations.json"

    @property
    def trained(self) -> Path:
        """The record that training is complete."""
        return self.storage / "trained.json"

    def fence(self, epoch: int) -> Path:
        """Return the fence file of an epoch."""
        return self.storage / f"fence.{epoch}"

    @property
    def attempts(self) -> Path:
        """The parent of all records of attempts."""
        return self.storage / "attempts"

    def attempt(self, epoch: int) -> Path:
        """Return the record of the attempt that holds an epoch."""
        return self.attempts / f"{epoch}.json"

    @property
    def logs(self) -> Path:
        """The parent of all logs of steps."""
        return self.storage / "log"

    def log(self, epoch: int) -> Path:
        """Return the log of the steps of the attempt that holds an epoch, as JSON lines."""
        return self.logs / f"{epoch}.jsonl"

    def checkpoint(self, step: int, epoch: int) -> Path:
        """Return the folder of a checkpoint.

        Its name contains the epoch, so that two gangs never write to the same file.
        """
        return self.checkpoints / f"step-{step:08d}-e{epoch:04d}"

    def prepared(self, digest: str) -> Path:
        """Return the folder of the prepared data, which all jobs with the same digest share."""
        return self.cache / "prepared" / digest

    def uri(self, path: Path) -> str:
        """Return the pvc:// address of a path below the storage."""
        return f"{self.storage_uri}/{path.relative_to(self.storage)}"


@dataclass(frozen=True)
class Cache:
    """The folder of downloads and prepared data, which the jobs that name it share."""

    folder: Path
    uri: str  # its pvc:// address, for messages

    @classmethod
    def of(cls, config: RunConfig) -> "Cache":
        """Return the cache that a configuration names, or the one below the run's storage."""
        if config.cache:
            return cls(claim_path(config.cache, config.mounts), config.cache)
        storage = config.checkpoints.storage
        folder = claim_path(storage, config.mounts) / "cache"
        return cls(folder, f"{storage.rstrip('/')}/cache")

    def model(self, source: str, revision: str) -> Path:
        """Return the folder of a downloaded model.

        Its name is the revision that the source was resolved to. A path within a repository has the
        commit of the entire repository and is distinguished by a digest of the path.
        """
        address = parse(source)
        name = revision
        if isinstance(address, HubPath) and address.path:
            name += f"-{hashlib.sha256(address.path.encode()).hexdigest()[:8]}"
        return self.folder / "models" / name

    def check_model(self, source: str, folder: Path) -> None:
        """Raise TrainerError 66 if a downloaded model has disappeared since it was prepared."""
        if not is_claim(source) and not folder.is_dir():
            raise TrainerError(
                ExitCode.INPUT_MISSING,
                f"{source}: {self.uri}/models/{folder.name} is gone; keep the cache while "
                "a job runs, or make a new job, which downloads it again",
            )


def claim_path(uri: str, mounts: dict[str, str]) -> Path:
    """Return the path in this pod of a pvc:// address. `mounts` maps claims to their mount paths.

    Raises TrainerError 64 if the claim is not mounted, or if a link leads out of it: users who may
    write to a claim could otherwise make the pod read files that are not on the claim.
    """
    address = ClaimPath.parse(uri)
    mount = mounts.get(address.claim)
    if mount is None:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{uri}: the claim {address.claim!r} is not mounted in this pod",
        )
    path = Path(address.under(mounts))
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(mount)):
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{uri}: a link leads out of the claim; copy the file onto the claim",
        )
    return path


_NO_FILES = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def claim_file(uri: str, mounts: dict[str, str]) -> Path:
    """Return the path in this pod of a file's pvc:// address, without opening it.

    Raises the errors of `claim_path`, and TrainerError 64 for a named pipe, a socket or a device,
    from which a read may never return, and 66 for a link to nothing.
    """
    path = claim_path(uri, mounts)
    if path.is_symlink() and not path.exists():
        problem = f"a link to {os.readlink(path)}, which does not exist"
        if _is_loop(path):
            problem = "a link that leads back to itself"
        raise TrainerError(
            ExitCode.INPUT_MISSING,
            f"{uri}: {problem}; copy the file there, or remove the link",
        )
    kind = _NO_FILES.get(stat.S_IFMT(path.stat().st_mode))
    if kind:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{uri}: {kind}, not a file; copy the data into a file",
        )
    return path


def _is_loop(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _model_folder(source: str, revision: str | None, cache: Cache, mounts: dict[str, str]) -> Path:
    if is_claim(source):
        return claim_path(source, mounts)
    if revision is None:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{source}: the run configuration does not contain the revision of the model "
            "(modelRevision); update the operator",
        )
    return cache.model(source, revision)
