"""Folders outside the tree: the cache of builds, and the state of running clusters."""

import os
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]


def cache_folder() -> Path:
    """Return the folder of builds and downloads: $FINETUNE_CACHE, or one in the user's cache."""
    named = os.environ.get("FINETUNE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named).expanduser() if named else base / "finetune-operator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clusters_folder() -> Path:
    """Return the folder in which clusters keep their state, accessible only by its owner.

    It is short, because the path of a socket has at most 108 bytes.
    """
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = base / "finetune-local"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder
