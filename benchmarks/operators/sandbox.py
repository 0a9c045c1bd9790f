"""A private network and process space: unreachable from outside, and ended with this process.

Kubeflow's webhook server can only listen on all addresses. That is harmless in a network that has
only a loopback interface. All processes of a process space end when its first process ends.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from finetune_local.cache import TREE
from finetune_local.cluster import check_machine, die_with_parent

_STATE = "FINETUNE_BENCHMARK_STATE"
CERTIFICATES = Path("/tmp/k8s-webhook-server")  # compiled into Kubeflow's operator
SERVICE_ADDRESS = "10.96.0.99"  # of the webhook's Service; nothing routes to it here


def state() -> Path | None:
    """Return the folder of this run; None outside of the sandbox."""
    named = os.environ.get(_STATE)
    return Path(named) if named else None


def run_inside(module: str, arguments: list[str]) -> int:
    """Run a module of this repository inside of a sandbox and return its exit code."""
    check_machine()
    signal.signal(signal.SIGTERM, _interrupted)
    spaces = ["--user", "--map-root-user", "--net", "--pid", "--mount", "--mount-proc"]
    command = ["unshare", *spaces, "--fork", "--kill-child", sys.executable, "-m", module]
    # Processes that a shell starts in the background ignore SIGINT unless they install a handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="ftb-") as folder:
        env = os.environ | {_STATE: folder, "XDG_STATE_HOME": folder}
        process = subprocess.Popen(
            [*command, *arguments], env=env, cwd=TREE, preexec_fn=die_with_parent
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 130
        finally:
            process.kill()
            process.wait()
            _wait_gone(folder)
            with suppress(OSError):
                CERTIFICATES.rmdir()


def _wait_gone(folder: str, seconds: float = 15) -> None:
    """Wait until all processes of the space have ended; the kernel ends them one by one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(_names(folder), Path("/proc").iterdir())):
        time.sleep(0.1)


def _names(folder: str) -> Callable[[Path], bool]:
    def check(entry: Path) -> bool:
        try:
            return entry.name.isdigit() and folder.encode() in (entry / "environ").read_bytes()
        except OSError:
            return False

    return check


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def set_up() -> None:
    """Set up what the programs expect of a machine: an interface, a route, a folder."""
    CERTIFICATES.mkdir(exist_ok=True)
    for command in (
        "ip link set lo up",
        f"ip address add {SERVICE_ADDRESS}/32 dev lo",
        "ip route add default dev lo",  # The API server derives its address from it.
        f"mount -t tmpfs tmpfs {CERTIFICATES}",
    ):
        subprocess.run(command.split(), check=True)
    # Connections in TIME_WAIT keep their ports, and there are thousands of them here.
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 65000")
