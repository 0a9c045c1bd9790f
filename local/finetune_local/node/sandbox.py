"""Builds the root folder of a container from bind mounts and executes the container's command.

It runs as mapped root in a new process. The root shows the files of the machine and the mounts of
the pod. The process makes it its own root, changes to the pod's user in another user namespace and
executes the command. Imports only the standard library, because it must start quickly.
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
# The numbers of nosuid, nodev, noexec, noatime and nodiratime are the same in statvfs and mount.
# The number of relatime is not.
_SAME_FLAGS, _STATVFS_RELATIME, _RELATIME = 0x2 | 0x4 | 0x8 | 0x400 | 0x800, 0x1000, 0x200000
_libc = ctypes.CDLL(None, use_errno=True)


def execute(config: dict[str, Any]) -> None:
    """Replace this process with the container's command; raise an error if that fails."""
    die_with_parent()
    unshare(_NEW_MOUNTS | _NEW_NAMES)
    _mount(None, Path("/"), None, _REC | _PRIVATE)
    socket.sethostname(config["hostname"])
    root = Path(config["root"])
    _build(root, config)
    _enter(root)
    os.chdir(config["cwd"])
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _change_user(config["user"], config["group"])
    die_with_parent()  # again, because the kernel resets it when the user changes
    os.execvpe(config["command"][0], config["command"], config["env"])


def execute_in(config: dict[str, Any], process: int, command: list[str]) -> None:
    """Replace this process with a command in the container of `process`; raise if that fails.

    The PID namespace must be that of the container already.
    """
    die_with_parent()
    spaces = [os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "uts", "user")]
    for space in spaces:
        _check(_libc.setns(space, 0), "setns")
    os.chdir(config["cwd"])
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    die_with_parent()
    os.execvpe(command[0], command, config["env"])


def enter_pids(process: int) -> None:
    """Let the children of this process be in the PID namespace of another one's children."""
    space = os.open(f"/proc/{process}/ns/pid", os.O_RDONLY)
    _check(_libc.setns(space, 0), "setns")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def unshare(flags: int) -> None:
    """Move this process into new namespaces (`os.unshare` exists since Python 3.12)."""
    _check(_libc.unshare(flags), "unshare")


def _build(root: Path, config: dict[str, Any]) -> None:
    image = [_place(path, path, read_only=config["read_only_root"]) for path in config["visible"]]
    own = [
        _place("/etc/hosts", config["hosts"]),
        _place(config["termination_path"], config["termination_log"]),
    ]
    # Outer mounts come first, so that a volume at /tmp does not hide an image folder below it, nor
    # an image folder a volume.
    mounts = sorted([*image, *config["mounts"]], key=lambda mount: Path(mount["target"]).parts)
    mounts += own
    _mount("tmpfs", root, "tmpfs", 0)
    # Resolve links in mount points: /var/run is a link to /run on most machines.
    targets = [Path(mount["target"]).resolve() for mount in mounts]
    missing = [path for path in targets if not path.exists()]
    _graft(Path("/"), root, missing, hidden=("dev", "proc", "tmp"))
    _special_folders(root)
    if config["read_only_root"]:
        for mount in mounts:
            _mount_point(root, mount["source"], mount["target"])
        read_only(root, except_for=root / "proc")  # container runtimes leave /proc writable
    _mount("tmpfs", root / "dev" / "shm", "tmpfs", _NOSUID | _NODEV)
    for mount in mounts:
        bind_at(root, mount["source"], mount["target"], mount["read_only"])


def _place(target: str, source: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"target": target, "source": source, "read_only": read_only}


def _graft(source: Path, target: Path, missing: list[Path], hidden: tuple[str, ...] = ()) -> None:
    """Bind `source` to `target`, child by child if a mount point below it is missing.

    A mount needs an existing folder, and the folders of the machine must not be changed. So the
    parent of a missing mount point becomes a new folder into which its children are bound.
    """
    below = [path for path in missing if path.is_relative_to(source)]
    if not below and source != Path("/"):
        _bind(source, target)
        return
    target.mkdir(exist_ok=True)
    for child in source.iterdir():
        point = target / child.name
        if child.name in hidden:
            continue
        if child.is_symlink():
            point.symlink_to(child.readlink())
        elif child.is_dir():
            point.mkdir()
            _graft(child, point, missing)
        else:
            point.touch()
            _bind(child, point)


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
    """Bind `source` to the path `target` of the container whose root is `root`."""
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
    """Return a path of the container as a path below `root`, which is not yet the root folder.

    Symbolic links are resolved as in the container: a link to /run means the container's /run. The
    kernel would resolve them outside of `root`, and folders would be created on the machine.
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


def read_only(place: Path, except_for: Path | None = None) -> None:
    """Make a folder and the mounts below it read-only, except for one mount.

    In a user namespace the flags of a mount from outside are locked: a remount must repeat them.
    """
    for point in _mounts_below(place):
        if except_for is not None and point == except_for.resolve():
            continue
        current = os.statvfs(point).f_flag
        flags = current & _SAME_FLAGS | (_RELATIME if current & _STATVFS_RELATIME else 0)
        _mount(None, point, None, _REMOUNT | _BIND | _READ_ONLY | flags)


def _mounts_below(place: Path) -> list[Path]:
    place, points = place.resolve(), []  # mountinfo contains resolved paths
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # mountinfo escapes spaces and similar characters: \040.
        name = line.split()[4].decode("unicode_escape").encode("latin-1")
        point = Path(os.fsdecode(name))
        if point.is_relative_to(place):
            points.append(point)
    return points


def _enter(root: Path) -> None:
    """Make `root` the root folder, by pivot_root: a chroot would forbid new user namespaces."""
    os.chdir(root)
    number = _PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, b".", b"."), f"pivot_root to {root}")
    _check(_libc.umount2(b".", _DETACH), "umount of the old root")
    os.chdir("/")


def _change_user(user: int, group: int) -> None:
    """Become this user and group in a user namespace, which can map only one id of each."""
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
