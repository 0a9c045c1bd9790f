"""What a container sees of the machine: a root folder of its own, built from bind mounts.

Runs as mapped root in a fresh process. Builds a root that shows the machine's own files plus the
pod's mounts, moves into it, drops to the pod's user in one more user namespace and executes the
command. Standard library only, and nothing of ours: it must start fast.
"""

import ctypes
import os
import signal
import socket
from pathlib import Path
from typing import Any

_REMOUNT, _BIND, _REC, _PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_READ_ONLY, _NOSUID, _NODEV = 0x1, 0x2, 0x4
_NEW_MOUNTS, _NEW_NAMES, _NEW_USER = 0x00020000, 0x04000000, 0x10000000
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_NO_NEW_PRIVILEGES, _PARENT_DEATH_SIGNAL = 38, 1
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# statvfs and mount agree on nosuid, nodev, noexec, noatime and nodiratime, not on relatime.
_SAME_FLAGS, _STATVFS_RELATIME, _RELATIME = 0x2 | 0x4 | 0x8 | 0x400 | 0x800, 0x1000, 0x200000
_libc = ctypes.CDLL(None, use_errno=True)


def become(config: dict[str, Any]) -> None:
    """Never returns: ends as the container's command, or raises what was in the way."""
    die_with_parent()
    unshare(_NEW_MOUNTS | _NEW_NAMES)
    _mount(None, Path("/"), None, _REC | _PRIVATE)
    socket.sethostname(config["hostname"])
    root = Path(config["root"])
    _build(root, config)
    _enter(root)
    os.chdir(config["cwd"])
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _drop_to(config["user"], config["group"])
    die_with_parent()  # again: the kernel forgets it when a process changes its user
    os.execvpe(config["command"][0], config["command"], config["env"])


def die_with_parent() -> None:
    """The kernel kills us when our parent is gone, however it went."""
    _libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (`os.unshare` came with Python 3.12)."""
    _check(_libc.unshare(flags), "unshare")


def _build(root: Path, config: dict[str, Any]) -> None:
    image = [_place(path, path, read_only=config["read_only_root"]) for path in config["visible"]]
    own = [
        _place("/etc/hosts", config["hosts"]),
        _place(config["termination_path"], config["termination_log"]),
    ]
    # Outer ones first: a volume at /tmp does not hide an image that lies below it, nor an image a
    # volume.
    mounts = sorted([*image, *config["mounts"]], key=lambda mount: Path(mount["target"]).parts)
    mounts += own
    _mount("tmpfs", root, "tmpfs", 0)
    # Where a mount point really lies: /var/run is a link to /run on most machines.
    places = [Path(mount["target"]).resolve() for mount in mounts]
    missing = [path for path in places if not path.exists()]
    _graft(Path("/"), root, missing, hidden=("dev", "proc", "tmp"))
    _special_folders(root)
    if config["read_only_root"]:
        for mount in mounts:
            _mount_point(root, mount["source"], mount["target"])
        read_only(root, but=root / "proc")  # as container runtimes leave it
    _mount("tmpfs", root / "dev" / "shm", "tmpfs", _NOSUID | _NODEV)
    for mount in mounts:
        bind_at(root, mount["source"], mount["target"], mount["read_only"])


def _place(target: str, source: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"target": target, "source": source, "read_only": read_only}


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


def bind_at(root: Path, source: str, target: str, only_read: bool) -> None:
    """Show `source` at the path `target` of the container whose root is `root`."""
    place = _mount_point(root, source, target)
    _bind(Path(source), place)
    if only_read:
        read_only(place)


def _mount_point(root: Path, source: str, target: str) -> Path:
    place = inside(root, target)
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    elif not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return place


def inside(root: Path, target: str) -> Path:
    """Where a path of the container lies while its root is still a folder of the machine.

    Symbolic links are followed as the container would: one to /run means its own /run. Followed by
    the kernel they would lead out of `root`, and folders would be made on the machine.
    """
    place, rest, links = root, list(reversed(Path(target).parts)), 0
    while rest:
        part = rest.pop()
        if part == "/":
            place = root
        elif part == "..":
            place = place if place == root else place.parent
        elif (step := place / part).is_symlink():
            links += 1
            if links > 40:
                raise OSError(40, f"too many symbolic links in {target}")
            rest += reversed(step.readlink().parts)
        else:
            place = step
    return place


def read_only(place: Path, but: Path | None = None) -> None:
    """Nothing below can be written, mounts below it neither, but for one.

    In a user namespace the flags that came with a mount from outside are locked: a remount that
    does not repeat them is refused.
    """
    for point in _mounts_below(place):
        if but is not None and point == but.resolve():
            continue
        told = os.statvfs(point).f_flag
        flags = told & _SAME_FLAGS | (_RELATIME if told & _STATVFS_RELATIME else 0)
        _mount(None, point, None, _REMOUNT | _BIND | _READ_ONLY | flags)


def _mounts_below(place: Path) -> list[Path]:
    place, points = place.resolve(), []  # as the kernel tells it: without links above the root
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # Spaces and the like are written as \040.
        name = line.split()[4].decode("unicode_escape").encode("latin-1")
        point = Path(os.fsdecode(name))
        if point.is_relative_to(place):
            points.append(point)
    return points


def _enter(root: Path) -> None:
    """pivot_root, not chroot: no user namespace can be made inside a chroot."""
    os.chdir(root)
    number = _PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, b".", b"."), f"pivot_root to {root}")
    _check(_libc.umount2(b".", _DETACH), "umount of the old root")
    os.chdir("/")


def _drop_to(user: int, group: int) -> None:
    """Appear as this user: one id is all that an unprivileged user can map."""
    unshare(_NEW_USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} 0 1")
    Path("/proc/self/gid_map").write_text(f"{group} 0 1")


def _bind(source: Path, target: Path) -> None:
    _mount(str(source), target, None, _BIND | _REC)


def _mount(source: str | None, target: Path, kind: str | None, flags: int) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    done = _libc.mount(text(source), os.fsencode(target), text(kind), flags, None)
    _check(done, f"mount {source} at {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
