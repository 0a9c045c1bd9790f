"""Programs that tests start and that Debian packages.

A package is unpacked into the cache; nothing is installed. Its version is that of the machine's
Debian release. A program that is on the PATH is used instead.
"""

import fcntl
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from finetune_local.build import BuildError
from finetune_local.cache import cache_folder
from finetune_local.machine import GB, Need, no_room


@dataclass(frozen=True)
class DebianTool:
    """A program and the package that contains it."""

    package: str
    name: str


# Evaluates the chart's alerts and the dashboard's queries. Apache-2.0.
PROMETHEUS = DebianTool("prometheus", "prometheus")
PROMTOOL = DebianTool("prometheus", "promtool")


def program(tool: DebianTool) -> Path:
    """Return the path of the program, downloading its package if needed.

    Raises BuildError if the program cannot be obtained. Concurrent callers unpack it only once.
    """
    if found := shutil.which(tool.name):
        return Path(found)
    with (cache_folder() / f"{tool.package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unpacked = sorted(cache_folder().glob(f"{tool.package}-*/usr/bin/{tool.name}"))
        return unpacked[-1] if unpacked else _unpack(tool) / "usr" / "bin" / tool.name


def _unpack(tool: DebianTool) -> Path:
    """Download and unpack the package; return its folder, whose name ends with the version."""
    package = tool.package
    if not shutil.which("apt-get"):
        raise BuildError(
            f"{tool.name} is not on the PATH, and without apt-get it cannot be taken from Debian's "
            f"package {package}; install {package} by other means"
        )
    if refused := no_room([Need(package, GB // 2, cache_folder())]):
        raise BuildError(refused)
    partial = cache_folder() / f"{package}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "lists" / "partial").mkdir(parents=True)
    print(f"{package}: downloading Debian's package (19 MB, once)", flush=True)
    # The machine's own package lists may be empty or older than the mirror, and tests must not
    # change them.
    own_lists = ["-o", f"Dir::State::Lists={partial / 'lists'}"]
    if not _apt(partial, "download", package):
        if not _apt(partial, *own_lists, "update"):
            raise BuildError("apt-get update failed; its output is above")
        if not _apt(partial, *own_lists, "download", package):
            raise BuildError(f"apt-get cannot download {package}; its output is above")
    (archive,) = partial.glob("*.deb")
    version = archive.name.split("_")[1]
    subprocess.run(["dpkg-deb", "-x", archive, partial / "root"], check=True)
    folder = cache_folder() / f"{package}-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    (partial / "root").rename(folder)
    shutil.rmtree(partial)
    return folder


def _apt(folder: Path, *arguments: str) -> bool:
    """Run apt-get with its cache in `folder` and return whether it succeeded."""
    # apt's own user may not write into our folder, so apt keeps running as the current user.
    options = ["-qq", "-o", "APT::Sandbox::User=root", "-o", f"Dir::Cache={folder}"]
    return (
        subprocess.run(["apt-get", *options, *arguments], cwd=folder, check=False).returncode == 0
    )


if __name__ == "__main__":
    for wanted in (PROMETHEUS, PROMTOOL):
        program(wanted)
