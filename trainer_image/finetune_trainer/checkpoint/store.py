"""Checkpoints on storage: which exist, which are whole, which may go."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from finetune_api.progress import CheckpointRecord
from finetune_api.storage import Manifest
from finetune_trainer.data import digest
from finetune_trainer.files import write_atomic
from finetune_trainer.paths import RunPaths

MANIFEST, VERIFIED = "MANIFEST.json", "VERIFIED"
_NAME = re.compile(r"step-(\d+)-e(\d+)")


def published(paths: RunPaths) -> list[tuple[Path, Manifest]]:
    """Checkpoints with a readable manifest and files of the right size, newest first."""
    found = []
    for folder in _folders(paths):
        manifest = read_manifest(folder)
        if manifest is not None:
            found.append((folder, manifest))
    return sorted(found, key=lambda item: (item[1].step, item[1].fence_epoch), reverse=True)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest, None when it is absent, unreadable, or a file has another size."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
        sizes = all((folder / f.path).stat().st_size == f.size_bytes for f in manifest.files)
    except (OSError, ValueError):
        return None
    return manifest if sizes else None


def damaged_file(folder: Path, manifest: Manifest) -> str | None:
    """Name of the first file that does not match its checksum, read past the page cache."""
    for entry in manifest.files:
        path = folder / entry.path
        drop_from_cache(path)
        if digest.of_file(path) != entry.xxh3_128:
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


def superseded(paths: RunPaths, keep_last: int, epoch: int) -> Iterator[Path]:
    """Folders that may go, given that `epoch` is ours.

    Whatever lies beyond `keep_last` checkpoints, but never the newest verified one; and unfinished
    folders of smaller epochs (one of our own epoch may be in the making).
    """
    whole = published(paths)
    keep = {folder for folder, _ in whole[:keep_last]}
    verified = [folder for folder, _ in whole if (folder / VERIFIED).exists()]
    keep |= set(verified[:1])
    names = {folder for folder, _ in whole}
    for folder in _folders(paths):
        match = _NAME.fullmatch(folder.name)
        older = match is not None and int(match.group(2)) < epoch
        if (folder in names and folder not in keep) or (folder not in names and older):
            yield folder


def remove(folder: Path) -> None:
    """Manifest first: a folder that is half gone must not look whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _folders(paths: RunPaths) -> list[Path]:
    if not paths.checkpoints.is_dir():
        return []
    return [p for p in paths.checkpoints.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)]
