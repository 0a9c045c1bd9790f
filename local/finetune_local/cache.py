"""Folders outside the tree: the cache of builds, and where running clusters live."""

import os
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]


def cache_folder() -> Path:
    """Where builds and downloads are kept: $FINETUNE_CACHE, or the user's cache folder."""
    named = os.environ.get("FINETUNE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named).expanduser() if named else base / "finetune-operator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clusters_folder() -> Path:
    """Where clusters keep state; owner only, short enough for the paths of sockets (108 bytes)."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = base / "finetune-local"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder
