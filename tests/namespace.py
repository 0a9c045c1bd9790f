"""Runs a command where the machine really lacks something, without touching the machine."""

import os
import subprocess

NO_NAMESPACES = "echo 0 > /proc/sys/user/max_user_namespaces"


def small_disk(folder: object) -> str:
    """Shell that makes a folder a file system of 64 MB, for this namespace only."""
    return f"mount -t tmpfs -o size=64m none {folder}"


def run_where(before: str, *command: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """In a user and mount namespace of its own, after a shell command there."""
    shell = f'{before} && exec "$0" "$@"'
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, *command],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
    )
