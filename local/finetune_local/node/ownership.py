"""fsGroup: a volume's files can be written by the pod's group.

Every process and every new file of the local cluster belongs to one user and one group of the
machine, which each container sees as its own; so the group need not be changed, only its rights.
"""

import os
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node.environment import UnresolvedError

_FILE, _FOLDER = 0o660, 0o2770  # what the kubelet adds


def give_to_group(path: Path, security: Object) -> None:
    """Add the rights that fsGroup promises; UnresolvedError when the files are someone else's."""
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
            # The top comes last: it says that all below is done.
        for folder, _, _ in os.walk(path, topdown=False):
            _add(Path(folder), _FOLDER)
    except PermissionError as error:
        raise UnresolvedError(
            f"fsGroup {security['fsGroup']}: {error.filename} belongs to another user of this "
            f"machine than the cluster's ({os.getuid()} in it)"
        ) from error


def _add(path: Path, rights: int) -> None:
    mode = path.stat().st_mode
    if mode & rights != rights:
        path.chmod(mode | rights)
