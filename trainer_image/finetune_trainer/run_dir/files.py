"""Writes that survive a crash, and digests that identify files and values by their contents.

A file or folder appears complete or not at all.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

_ABANDONED = 24 * 3600.0  # s without a change, after which no process is building a folder
_CHUNK = 1 << 22  # bytes


def write_new(path: Path, text: str) -> bool:
    """Create a file exclusively and return True, or return False if it exists already.

    The contents are written to another name, which is then linked. So no reader sees an incomplete
    file.
    """
    partial = partial_name(path)
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
    """Replace a file's contents atomically."""
    partial = partial_name(path)
    _write(partial, text)
    try:
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def partial_name(path: Path) -> Path:
    """Return the name of a file under construction that no other process uses.

    It is random, because processes in different containers have the same process id.
    """
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}")


def sync_tree(folder: Path) -> None:
    """Make a folder and everything below it durable."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def take_place(built: Path, target: Path) -> bool:
    """Rename a finished folder to `target`. Return False if another process has filled it."""
    try:
        built.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def unfinished(parent: Path, pattern: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders that match `pattern`, each with whether its builder has abandoned it.

    `pattern` matches the names of folders under construction. A folder is abandoned if nothing in
    it has changed for a day.
    """
    for partial in parent.glob(pattern):
        try:
            newest = max(path.stat().st_mtime for path in [partial, *partial.rglob("*")])
        except OSError:
            continue  # its builder is renaming it at this moment
        yield partial, time.time() - newest > _ABANDONED


def sync_folder(folder: Path) -> None:
    """Make renames and links in a folder durable."""
    _sync(folder)


def refresh(folder: Path) -> None:
    """Make a shared file system ask its server what a folder contains, before it is looked into.

    NFS clients remember for up to a minute what a folder contained, and what was absent from it.
    Opening the folder makes them ask whether it has changed.
    """
    with contextlib.suppress(OSError):
        sync_folder(folder)


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
        path.unlink(missing_ok=True)  # do not leave half a file on a full disk
        raise


def file_digest(path: Path, advance: Callable[[], None] | None = None) -> str:
    """Return the xxh3-128 of a file's contents in hex. Calls `advance` after every 4 MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if advance:
                advance()
    return digest.hexdigest()


def value_digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
