"""Programs that tests start and that Debian packages.

A package is unpacked into the cache; nothing is installed. Its version is that of the machine's
Debian release. A program that is on the PATH is used instead.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from finetune_local.build import BuildError
from finetune_local.cache import cache_folder, made_once
from finetune_local.machine import GB, Need, no_room


@dataclass(frozen=True)
class DebianTool:
    """A program and the package that contains it."""

    package: str
    name: str

    def find(self) -> Path | None:
        """Return the path of the program, or None if its package is not unpacked yet."""
        found = shutil.which(self.name) or shutil.which(self.name, path=str(self._programs))
        return Path(found) if found else None

    def build(self) -> Path:
        """Return the path of the program, unpacking its package if needed. Raises BuildError."""
        if found := self.find():
            return found
        made_once(self._folder, self._unpack)
        return self._programs / self.name

    @property
    def _folder(self) -> Path:
        return cache_folder() / f"debian-{self.package}"

    @property
    def _programs(self) -> Path:
        return self._folder / "root" / "usr" / "bin"

    def _unpack(self, folder: Path) -> None:
        if not shutil.which("apt-get"):
            raise BuildError(
                f"{self.name} is not on the PATH, and without apt-get it cannot be taken from "
                f"Debian's package {self.package}; install {self.package} by other means"
            )
        if refused := no_room([Need(self.package, GB // 2, cache_folder())]):
            raise BuildError(refused)
        (folder / "lists" / "partial").mkdir(parents=True)
        print(f"{self.package}: downloading Debian's package (19 MB, once)", flush=True)
        # The machine's own package lists may be empty or older than the mirror, and tests must not
        # change them.
        own_lists = ["-o", f"Dir::State::Lists={folder / 'lists'}"]
        if not _apt(folder, "download", self.package):
            if not _apt(folder, *own_lists, "update"):
                raise BuildError("apt-get update failed; its output is above")
            if not _apt(folder, *own_lists, "download", self.package):
                raise BuildError(f"apt-get cannot download {self.package}; its output is above")
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder / "root"], check=True)
        archive.unlink()
        shutil.rmtree(folder / "lists")


def _apt(folder: Path, *arguments: str) -> bool:
    """Run apt-get with its cache in `folder` and return whether it succeeded."""
    # apt's own user may not write into our folder, so apt keeps running as the current user.
    options = ["-qq", "-o", "APT::Sandbox::User=root", "-o", f"Dir::Cache={folder}"]
    return (
        subprocess.run(["apt-get", *options, *arguments], cwd=folder, check=False).returncode == 0
    )


# Evaluates the chart's alerts and the dashboard's queries. Apache-2.0.
PROMETHEUS = DebianTool("prometheus", "prometheus")
PROMTOOL = DebianTool("prometheus", "promtool")
