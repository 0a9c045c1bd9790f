"""Checkpoints on storage: which exist, which are whole, which may go."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune_api.progress import CheckpointRecord
from finetune_api.storage import Manifest
from finetune_trainer.run_dir import digest
from finetune_trainer.run_dir.files import write_atomic
from finetune_trainer.run_dir.paths import RunPaths

MANIFEST, VERIFIED, DIVERGED = "MANIFEST.json", "VERIFIED", "DIVERGED"
_NAME = re.compile(r"step-(\d+)-e(\d+)")
_log = logging.getLogger(__name__)


class UnusableError(Exception):
    """Why a checkpoint does not count, in words that follow its folder's name."""


def published(paths: RunPaths) -> list[tuple[Path, Manifest]]:
    """Checkpoints with a readable manifest and files of the right size, newest first."""
    found = ((folder, read_manifest(folder)) for folder in _folders(paths))
    return [(folder, manifest) for folder, manifest in found if manifest is not None]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest, None when it is absent, unreadable, or a file has another size."""
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
    """Checkpoints of this run that look whole, newest first; says what it passes over."""
    for folder in _folders(paths):
        try:
            manifest = _manifest(folder)
            if manifest.run_digest != run_digest:
                raise UnusableError(" belongs to another run (its digest differs)")
        except UnusableError as reason:
            _pass_over(folder, str(reason))
            continue
        yield folder, manifest


def distrust(folder: Path, damage: str) -> None:
    """One that does not read back loses its mark: retention must not prefer it to a whole one."""
    try:
        (folder / VERIFIED).unlink(missing_ok=True)
    except OSError as error:
        _log.warning("checkpoint %s keeps its mark: %s", folder.name, error)
    _pass_over(folder, damage)


def _pass_over(folder: Path, reason: str) -> None:
    _log.warning("checkpoint %s%s; trying the one before it", folder.name, reason)


def newest_valid(
    paths: RunPaths, run_digest: str, advance: Callable[[], None] | None = None
) -> tuple[Path, Manifest] | None:
    """The newest checkpoint of this run whose every file is whole, found out by one process."""
    for folder, manifest in candidates(paths, run_digest):
        damaged = damaged_file(folder, manifest, advance)
        if damaged is None:
            return folder, manifest
        distrust(folder, f"/{damaged} does not match its checksum")
    return None


def damaged_file(
    folder: Path, manifest: Manifest, advance: Callable[[], None] | None = None
) -> str | None:
    """Name of the first file that does not match its checksum, read past the page cache."""
    for entry in manifest.files:
        path = folder / entry.path
        drop_from_cache(path)
        if digest.of_file(path, advance) != entry.xxh3_128:
            return entry.path
    return None


def drop_from_cache(path: Path) -> None:
    """Make the next read come from the device: what the page cache holds proves nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def mark_verified(folder: Path) -> None:
    """Remember that every file was read back."""
    write_atomic(folder / VERIFIED, "")


def condemn(paths: RunPaths, last_good: int) -> None:
    """Nothing later than a step is resumed from any more: it is whole, and its weights are not."""
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
    """What the job's status shows, newest first."""
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
        for folder, manifest in published(paths)[:10]
    ]


def superseded(
    paths: RunPaths, keep_last: int, epoch: int, last_good: int | None = None
) -> Iterator[Path]:
    """Folders that may go, given that `epoch` is ours.

    Whatever lies beyond `keep_last` checkpoints, but never the newest verified one nor the one with
    the best validation loss; and unfinished folders of smaller epochs (one of our own epoch may be
    in the making). While weights after step `last_good` are in doubt, the newest verified one up to
    it stays as well, where possible in the place of another.
    """
    whole = published(paths)
    verified = [(folder, m.step) for folder, m in whole if (folder / VERIFIED).exists()]
    safe = [folder for folder, step in verified if last_good is not None and step <= last_good][:1]
    newest = [folder for folder, _ in whole[:keep_last]]
    if not set(safe) <= set(newest):
        # Else they would need more room than was asked for before the run.
        newest = newest[: max(1, keep_last - 1)]
    keep = {*newest, *safe, *(folder for folder, _ in verified[:1]), *best_first(whole)[:1]}
    names = {folder for folder, _ in whole}
    for folder in _folders(paths):
        match = _NAME.fullmatch(folder.name)
        older = match is not None and int(match.group(2)) < epoch
        if (folder in names and folder not in keep) or (folder not in names and older):
            yield folder


def best_first(whole: list[tuple[Path, Manifest]]) -> list[Path]:
    """Folders of checkpoints that were evaluated, lowest validation loss first, then the oldest."""
    measured = [
        (manifest.validation_loss, manifest.step, folder)
        for folder, manifest in whole
        if manifest.validation_loss is not None
    ]
    return [folder for *_, folder in sorted(measured)]


def remove(folder: Path) -> None:
    """Manifest first: a folder that is half gone must not look whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _folders(paths: RunPaths) -> list[Path]:
    """Newest first: by step, then by epoch."""
    if not paths.checkpoints.is_dir():
        return []
    found = []
    for path in paths.checkpoints.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match.group(1)), int(match.group(2)), path))
    return [path for *_, path in sorted(found, reverse=True)]
