"""Applies fsGroup: makes the files of a volume writable for the pod's group.

All processes and new files of the local cluster belong to one user and one group of the machine,
which each container sees as its own. So only the permissions change, never the group.
"""

import os
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node.environment import UnresolvedError

_FILE, _FOLDER = 0o660, 0o2770  # permissions that the kubelet adds


def give_to_group(path: Path, security: Object) -> None:
    """Add the permissions of fsGroup; UnresolvedError if another user owns the files."""
    if "fsGroup" not in security:
        return
    lazy = security.get("fsGroupChangePolicy") == "OnRootMismatch"
    if lazy and path.stat().st_mode & _FOLDER == _FOLDER:
        return
    try:
        for folder, _, names in os.walk(path):
            for name in names:
                file = Path(folder, name)
                if not file.is_symlink():
                    _add(file, _FILE)
        # The top folder comes last: its permissions show that all others are set.
        for folder, _, _ in os.walk(path, topdown=False):
            _add(Path(folder), _FOLDER)
    except PermissionError as error:
        raise UnresolvedError(
            f"fsGroup {security['fsGroup']}: {error.filename} belongs to another user of this "
            f"machine, not to the one that runs the cluster (uid {os.getuid()} inside of it)"
        ) from error


def _add(path: Path, permissions: int) -> None:
    mode = path.stat().st_mode
    if mode & permissions != permissions:
        path.chmod(mode | permissions)
