"""Folders outside the tree: the cache of builds, and the state of running clusters."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]


def name_of_this_checkout() -> str:
    """Return a short name that no other checkout on this machine has."""
    return hashlib.sha256(str(TREE).encode()).hexdigest()[:6]


def cache_folder() -> Path:
    """Return the folder of builds and downloads: $FINETUNE_CACHE, or one in the user's cache."""
    named = os.environ.get("FINETUNE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named).expanduser() if named else base / "finetune-operator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock of the cache folder, which only one process, or thread, has at a time."""
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: another process makes it; waiting", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Return a file or folder of the cache, making it if it is missing.

    `make` is called with another path, at which nothing exists. What it makes there appears at
    `path` when it is complete. Concurrent callers wait for the first one.
    """
    if path.exists():
        return path
    with locked(path.name):
        if not path.exists():
            partial = path.with_name(f"{path.name}.partial")
            if partial.is_dir():
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)
            make(partial)
            partial.rename(path)
    return path


def clusters_folder() -> Path:
    """Return the folder in which clusters keep their state, accessible only by its owner.

    It is short, because the path of a socket has at most 108 bytes.
    """
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = base / "finetune-local"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder
