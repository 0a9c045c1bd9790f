"""Runs programs in the root file system of an image, like a pod of the restricted level."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

USER = "12345:0"  # an arbitrary user without a name or a home, as OpenShift chooses one
# Like kubelet and runtime: a read-only root, an emptyDir at /tmp, and volumes at their paths.
_ENTER = """
root=$1 user=$2 places=$3; shift 3
mount --bind "$root" "$root"
for place in dev proc sys; do mount --rbind "/$place" "$root/$place"; done
for file in /etc/hosts /etc/resolv.conf; do mount --bind "$file" "$root$file"; done
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for place in $places; do
  if [ -d "$place" ]; then mkdir -p "$root$place"
  else mkdir -p "$root${place%/*}"; touch "$root$place"; fi
  mount --bind "$place" "$root$place"
done
mount -o remount,ro,bind "$root"
exec chroot --userspec="$user" "$root" "$@"
"""


@dataclass(frozen=True)
class Unpacked:
    """A mounted root file system."""

    root: Path
    env: dict[str, str]
    entrypoint: list[str]
    labels: dict[str, str]

    def command(
        self, *program: str, places: list[Path] | None = None, user: str = USER
    ) -> list[str]:
        """Return the command to execute as root; `places` are mounted at their own paths."""
        shown = " ".join(map(str, places or []))
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _ENTER, "sh"]
        own = [f"{name}={value}" for name, value in self.env.items()]
        return [*enter, str(self.root), user, shown, "/usr/bin/env", *own, *program]

    def run(self, *program: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a program with only the environment of the image."""
        command = self.command(*program)
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(command, env=path, capture_output=True, text=True, timeout=timeout)


def mounted(container: str) -> Unpacked:
    """Return the root of a working container of buildah, with the settings of its image."""
    shown = json.loads(buildah("inspect", container))["OCIv1"]["config"]
    return Unpacked(
        root=Path(buildah("mount", container)),
        env=dict(entry.split("=", 1) for entry in shown["Env"]),
        entrypoint=shown["Entrypoint"],
        labels=shown["Labels"],
    )


def buildah(*arguments: str) -> str:
    """Run buildah and return its output; AssertionError with its errors if it fails."""
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
