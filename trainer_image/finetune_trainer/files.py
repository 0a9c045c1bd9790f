"""Small writes that survive a crash: whole or not at all."""

import os
from pathlib import Path


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


def sync_folder(folder: Path) -> None:
    """Make renames and links in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
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
