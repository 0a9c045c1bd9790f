"""Process 1 of a container, before it becomes the container: `python -I -S sandbox.py CONFIG`.

Runs as mapped root in fresh mount, PID and UTS namespaces. Builds a root folder that shows the
machine's own files plus the pod's mounts, moves into it, drops to the pod's user in one more user
namespace and executes the command. Standard library only, and nothing of ours: it must start fast.
"""

import ctypes
import json
import os
import socket
import sys
from pathlib import Path

_REMOUNT, _BIND, _REC, _READ_ONLY, _NOSUID, _NODEV = 0x20, 0x1000, 0x4000, 0x1, 0x2, 0x4
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_NO_NEW_PRIVILEGES = 38
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Never returns: ends as the container's command."""
    config = json.loads(Path(sys.argv[1]).read_text())
    socket.sethostname(config["hostname"])
    root = Path(config["root"])
    _mount("tmpfs", root, "tmpfs", 0)
    targets = [Path(mount["target"]) for mount in config["mounts"]]
    _graft(Path("/"), root, [t for t in targets if not t.exists()], hidden=("dev", "proc", "tmp"))
    _special_folders(root)
    for path in config["visible"]:
        _bind_at(root, path, path, False)
    for mount in config["mounts"]:
        _bind_at(root, mount["source"], mount["target"], mount["read_only"])
    _bind_at(root, config["hosts"], "/etc/hosts", False)
    _bind_at(root, config["termination_log"], config["termination_path"], False)
    _enter(root)
    os.chdir(config["cwd"])
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    user = ["--user", f"--map-user={config['user']}", f"--map-group={config['group']}"]
    os.execvpe("unshare", ["unshare", *user, "--", *config["command"]], config["env"])


def _graft(source: Path, target: Path, missing: list[Path], hidden: tuple[str, ...] = ()) -> None:
    """Show `source` at `target`; where a mount point is missing below it, child by child.

    A mount needs a folder to sit on. The machine's own folders must not be touched, so the folder
    above a missing one is made anew and its children are bound into it.
    """
    below = [path for path in missing if path.is_relative_to(source)]
    if not below and source != Path("/"):
        _bind(source, target)
        return
    target.mkdir(exist_ok=True)
    for child in source.iterdir():
        place = target / child.name
        if child.name in hidden:
            continue
        if child.is_symlink():
            place.symlink_to(child.readlink())
        elif child.is_dir():
            place.mkdir()
            _graft(child, place, missing)
        else:
            place.touch()
            _bind(child, place)


def _special_folders(root: Path) -> None:
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir()
    _mount("proc", root / "proc", "proc", _NOSUID | _NODEV)
    (root / "tmp").chmod(0o1777)
    for name in _DEVICES:
        (root / "dev" / name).touch()
        _bind(Path("/dev") / name, root / "dev" / name)
    (root / "dev" / "shm").mkdir(mode=0o1777)
    for name, link in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/fd{link}")


def _bind_at(root: Path, source: str, target: str, read_only: bool) -> None:
    place = root / target.lstrip("/")
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    elif not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    _bind(Path(source), place)
    if read_only:
        _mount(None, place, None, _REMOUNT | _BIND | _READ_ONLY)


def _enter(root: Path) -> None:
    """pivot_root, not chroot: no user namespace can be made inside a chroot."""
    os.chdir(root)
    number = _PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, b".", b"."), f"pivot_root to {root}")
    _check(_libc.umount2(b".", _DETACH), "umount of the old root")
    os.chdir("/")


def _bind(source: Path, target: Path) -> None:
    _mount(str(source), target, None, _BIND | _REC)


def _mount(source: str | None, target: Path, kind: str | None, flags: int) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else value.encode()

    done = _libc.mount(text(source), str(target).encode(), text(kind), flags, None)
    _check(done, f"mount {source} at {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    main()
