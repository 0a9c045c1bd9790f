"""Runs a command in a namespace in which the machine really lacks something."""

import os
import subprocess

NO_NAMESPACES = "echo 0 > /proc/sys/user/max_user_namespaces"


def small_disk(folder: object) -> str:
    """Return a shell command that mounts a file system of 64 MB, in this namespace only."""
    return f"mount -t tmpfs -o size=64m none {folder}"


def run_where(before: str, *command: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a new user and mount namespace, after the shell command `before`."""
    shell = f'{before} && exec "$0" "$@"'
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, *command],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
