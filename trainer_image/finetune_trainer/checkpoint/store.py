"""Checkpoints on storage: which exist, which are valid, and which are deleted."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.names import MAX_CHECKPOINTS
from finetune_api.progress import CheckpointRecord
from finetune_api.storage import Manifest
from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.files import file_digest, refresh, write_atomic
from finetune_trainer.run_dir.paths import RunPaths

MANIFEST, VERIFIED, DIVERGED = "MANIFEST.json", "VERIFIED", "DIVERGED"
_NAME = re.compile(r"step-(\d+)-e(\d+)")
_log = logging.getLogger(__name__)


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


class UnusableError(Exception):
    """Why a checkpoint cannot be used, as text that follows the name of its folder."""


@dataclass(frozen=True)
class Deletion:
    """A checkpoint that is to be deleted, and why."""

    folder: Path
    step: int
    why: str


def published(paths: RunPaths) -> list[tuple[Path, Manifest]]:
    """Return the published checkpoints whose files all have the right size, newest first.

    Checkpoints that are marked as diverged are left out.
    """
    found = ((folder, read_manifest(folder)) for folder in _folders(paths))
    return [(folder, manifest) for folder, manifest in found if manifest is not None]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a checkpoint, or None if `published` would leave it out."""
    try:
        return _manifest(folder)
    except UnusableError:
        return None


def _manifest(folder: Path) -> Manifest:
    if (folder / DIVERGED).exists():
        raise UnusableError(" holds weights with which the run diverged")
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise UnusableError(" was never finished (it has no manifest)") from None
    except (OSError, ValueError):
        raise UnusableError(" has no readable manifest") from None
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise UnusableError(f"/{entry.path} is absent or has another size")
    return manifest


def candidates(paths: RunPaths, run_digest: str) -> Iterator[tuple[Path, Manifest]]:
    """Yield the published checkpoints of this run, newest first, and log those it skips."""
    for folder in _folders(paths):
        try:
            manifest = _manifest(folder)
            if manifest.run_digest != run_digest:
                raise UnusableError(" belongs to another run (its digest differs)")
        except UnusableError as reason:
            _log_skipped(folder, str(reason))
            continue
        yield folder, manifest


def unmark(folder: Path, damage: str) -> None:
    """Remove the mark of a checkpoint that does not match its checksums, and log the damage.

    Retention must not prefer a damaged checkpoint to a valid one.
    """
    try:
        (folder / VERIFIED).unlink(missing_ok=True)
    except OSError as error:
        _log.warning("checkpoint %s stays marked as verified: %s", folder.name, error)
    _log_skipped(folder, damage)


def _log_skipped(folder: Path, reason: str) -> None:
    _log.warning("checkpoint %s%s; trying the one before it", folder.name, reason)


def newest_valid(
    paths: RunPaths, run_digest: str, advance: Callable[[], None] | None = None
) -> tuple[Path, Manifest] | None:
    """Return the newest checkpoint of this run whose files all match their checksums.

    This process reads all files by itself. A gang uses `resume.newest_valid`.
    """
    for folder, manifest in candidates(paths, run_digest):
        damaged = damaged_file(folder, manifest, advance)
        if damaged is None:
            return folder, manifest
        unmark(folder, f"/{damaged} does not match its checksum")
    return None


def damaged_file(
    folder: Path, manifest: Manifest, advance: Callable[[], None] | None = None
) -> str | None:
    """Return the name of the first file that does not match its checksum on the device."""
    for entry in manifest.files:
        path = folder / entry.path
        drop_from_cache(path)
        if file_digest(path, advance) != entry.xxh3_128:
            return entry.path
    return None


def drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache, so that the next read comes from the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def mark_verified(folder: Path) -> None:
    """Record that every file of a checkpoint was read back."""
    write_atomic(folder / VERIFIED, "")


def mark_diverged(paths: RunPaths, last_good: int) -> None:
    """Exclude all checkpoints after a step from resume, because their weights are not usable.

    Logs each of them, and those that cannot be marked.
    """
    for folder, manifest in published(paths):
        if manifest.step <= last_good:
            continue
        try:
            write_atomic(folder / DIVERGED, "")
        except OSError as error:
            _log.error("checkpoint %s could not be marked as diverged: %s", folder.name, error)
        else:
            _log.warning("checkpoint %s holds weights with which the run diverged", folder.name)


def records(paths: RunPaths) -> list[CheckpointRecord]:
    """Return the ten newest published checkpoints as the job's status shows them."""
    return [
        CheckpointRecord(
            step=manifest.step,
            location=paths.uri(folder),
            creation_time=manifest.creation_time,
            size_bytes=sum(entry.size_bytes for entry in manifest.files),
            verified=(folder / VERIFIED).exists(),
            world_size=manifest.world_size,
            validation_loss=manifest.validation_loss,
        )
        for folder, manifest in published(paths)[:MAX_CHECKPOINTS]
    ]


def to_delete(
    paths: RunPaths, keep_last: int, fence_epoch: int, last_good: int | None = None
) -> Iterator[Deletion]:
    """Yield the checkpoints to delete, on behalf of the attempt with `fence_epoch`.

    These are the published ones beyond the newest `keep_last`, except the newest verified one and
    the one with the best validation loss. Folders of earlier attempts that are not published are
    deleted as well; one of this attempt may still be in progress.

    While divergence is suspected after step `last_good`, the newest verified checkpoint up to that
    step stays, if possible instead of one of the newest.
    """
    existing = published(paths)
    verified = [(folder, m.step) for folder, m in existing if (folder / VERIFIED).exists()]
    safe = [folder for folder, step in verified if last_good is not None and step <= last_good][:1]
    newest = [folder for folder, _ in existing[:keep_last]]
    if not set(safe) <= set(newest):
        # Keeping one more would need more room than the run was checked to have.
        newest = newest[: max(1, keep_last - 1)]
    keep = {*newest, *safe, *(folder for folder, _ in verified[:1]), *best_first(existing)[:1]}
    steps = {folder: manifest.step for folder, manifest in existing}
    for folder in _folders(paths):
        step, epoch = _step_and_epoch(folder)
        if folder in steps and folder not in keep:
            yield Deletion(folder, step, f"superseded by the one of step {existing[0][1].step}")
        elif folder not in steps and epoch < fence_epoch:
            diverged = (folder / DIVERGED).exists()
            yield Deletion(folder, step, "the run diverged" if diverged else "incomplete")


def best_first(checkpoints: list[tuple[Path, Manifest]]) -> list[Path]:
    """Return the folders of evaluated checkpoints: lowest loss first, then the oldest."""
    measured = [
        (manifest.validation_loss, manifest.step, folder)
        for folder, manifest in checkpoints
        if manifest.validation_loss is not None
    ]
    return [folder for *_, folder in sorted(measured)]


def delete(paths: RunPaths, deletion: Deletion) -> None:
    """Delete a checkpoint and log it.

    The manifest goes first: a folder that is deleted only in part must not look complete.
    """
    (deletion.folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(deletion.folder, ignore_errors=True)
    log_deleted(paths, deletion)


def log_deleted(paths: RunPaths, deletion: Deletion) -> None:
    """Log that a checkpoint does not exist any more, and why."""
    location = paths.uri(deletion.folder)
    _log.info("deleted the checkpoint of step %d (%s): %s", deletion.step, location, deletion.why)


def _folders(paths: RunPaths) -> list[Path]:
    """Return the folders of checkpoints, newest first: by step, then by fence epoch."""
    if not paths.checkpoints.is_dir():
        return []
    refresh(paths.checkpoints)
    found = [
        path for path in paths.checkpoints.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(found, key=lambda path: (*_step_and_epoch(path), path), reverse=True)


def _step_and_epoch(folder: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match.group(1)), int(match.group(2))
