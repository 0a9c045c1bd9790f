"""An image's root file system, and programs that run in it as in a pod of the restricted level."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

USER = "12345:0"  # any: OpenShift chooses one, without a name or a home
# As kubelet and runtime do it: the root read-only, /tmp an emptyDir, volumes in their places.
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
    """One that is mounted."""

    root: Path
    env: dict[str, str]
    entrypoint: list[str]
    labels: dict[str, str]

    def command(self, *words: str, places: list[Path] | None = None, user: str = USER) -> list[str]:
        """To be executed as root; `places` of this machine are mounted at their own paths."""
        shown = " ".join(map(str, places or []))
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _ENTER, "sh"]
        own = [f"{name}={value}" for name, value in self.env.items()]
        return [*enter, str(self.root), user, shown, "/usr/bin/env", *own, *words]

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """With the environment of the image and nothing else."""
        command = self.command(*words)
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(command, env=path, capture_output=True, text=True, timeout=timeout)


def mounted(container: str) -> Unpacked:
    """The root of a working container of buildah, with what its image says."""
    shown = json.loads(buildah("inspect", container))["OCIv1"]["config"]
    return Unpacked(
        root=Path(buildah("mount", container)),
        env=dict(entry.split("=", 1) for entry in shown["Env"]),
        entrypoint=shown["Entrypoint"],
        labels=shown["Labels"],
    )


def buildah(*arguments: str) -> str:
    """What it prints; AssertionError with its words when it fails."""
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
