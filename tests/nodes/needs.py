"""What a computer must have before a test cluster is started on it."""

import os
import shutil
import subprocess
import sys

from finetune_local.cache import cache_folder
from finetune_local.machine import GB, Need, no_room
from tests.nodes import programs

# Requirement -> command that succeeds, in namespaces of its own, only where it is met.
_KERNEL = {
    "bridges and pairs of network devices": "ip link add veth0 type veth peer name veth1 && "
    "ip link add bridge0 type bridge",
    "nf_tables": "nft add table ip a && nft delete table ip a",
    "overlayfs in $FOLDER": 'cd "$FOLDER" && mkdir -p a b c d && '
    "mount -t overlay overlay -o lowerdir=a,upperdir=b,workdir=c d",
    "limits of memory in cgroups": "test -e /sys/fs/cgroup/memory/memory.limit_in_bytes || "
    "grep -q memory /sys/fs/cgroup/cgroup.controllers",
}


def unmet() -> str | None:
    """Return what is missing and what to do, or None if nothing is."""
    if not sys.platform.startswith("linux"):
        return f"a cluster of nodes runs only on Linux; this is {sys.platform}"
    if os.geteuid() != 0:
        return f"containers and networks need root; this is user {os.geteuid()}"
    if packages := programs.missing():
        names = " ".join(packages)
        return f"programs are missing: apt-get install --no-install-recommends {names}"
    if refused := no_room([Need("nodes", 5 * GB, cache_folder())]):
        return refused
    lacking = [what for what, probe in _KERNEL.items() if not _succeeds(probe)]
    return f"the kernel or this container does not allow: {', '.join(lacking)}" if lacking else None


def _succeeds(probe: str) -> bool:
    folder = cache_folder() / "probe"
    folder.mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--net", "sh", "-euc", probe]
    env = os.environ | {"FOLDER": str(folder)}
    done = subprocess.run(command, env=env, check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    return done.returncode == 0
