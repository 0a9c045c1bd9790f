"""What this machine must offer, and the tie between a process and its parent."""

import ctypes
import shutil
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


class ClusterError(Exception):
    """A cluster did not do what was asked; the message says what to do."""


def check_machine() -> None:
    """ClusterError in words when this machine cannot run a local cluster."""
    if not sys.platform.startswith("linux"):
        raise ClusterError(f"the local cluster runs on Linux only, this is {sys.platform}")
    if shutil.which("unshare") is None:
        raise ClusterError("the program unshare (package util-linux) is not on the PATH")
    probe = ["unshare", "--user", "--map-root-user", "--pid", "--mount", "--fork", "--mount-proc"]
    done = subprocess.run([*probe, "true"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(
            f"the kernel refuses user namespaces ({done.stderr.strip()}); allow them: "
            "sysctl -w user.max_user_namespaces=15000, and on Ubuntu also "
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )


def die_with_parent() -> None:
    """To be run between fork and exec: the kernel kills us when the parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
