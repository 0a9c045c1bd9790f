"""Writes that survive a crash: files and folders that are there whole or not at all."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

_ABANDONED = 24 * 3600.0  # s; what has not moved for a day is nobody's work any more


def write_new(path: Path, text: str) -> bool:
    """Create a file exclusively, with its contents in place; False when it exists already.

    Written aside and linked: whoever sees the name sees the whole file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    _write(partial, text)
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    sync_folder(path.parent)
    return True


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's contents at once."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    _write(partial, text)
    partial.replace(path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Make a folder durable, with all that is below it."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def take_place(built: Path, target: Path) -> bool:
    """Rename a finished folder; False when somebody else's is there already."""
    try:
        built.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def unfinished(parent: Path, pattern: str) -> Iterator[tuple[Path, bool]]:
    """Folders of a name that is given to unfinished ones, each with whether it was abandoned."""
    for partial in parent.glob(pattern):
        try:
            newest = max(path.stat().st_mtime for path in [partial, *partial.rglob("*")])
        except OSError:
            continue  # its builder is just finishing
        yield partial, time.time() - newest > _ABANDONED


def sync_folder(folder: Path) -> None:
    """Make renames and links in a folder durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)  # a full disk must not be made fuller
        raise
