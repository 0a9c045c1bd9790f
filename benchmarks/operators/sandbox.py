"""A private network and process space: nothing of ours is reachable, all of it ends with us.

Kubeflow's webhook server can only listen on every address. In a network of its own, with nothing
but a loopback interface in it, that is harmless. The process space ends every process when its
first one ends, however that happens.
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
SERVICE_ADDRESS = "10.96.0.99"  # the webhook's Service; nothing routes such addresses here


def state() -> Path | None:
    """Folder for everything of this run; None outside of the sandbox."""
    named = os.environ.get(_STATE)
    return Path(named) if named else None


def run_inside(module: str, arguments: list[str]) -> int:
    """Run a module of this tree inside; its exit code."""
    check_machine()
    signal.signal(signal.SIGTERM, _interrupted)
    spaces = ["--user", "--map-root-user", "--net", "--pid", "--mount", "--mount-proc"]
    command = ["unshare", *spaces, "--fork", "--kill-child", sys.executable, "-m", module]
    # SIGINT is ignored in what a shell starts in the background, until somebody handles it.
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
    """Until no process of the space is left: the kernel ends them one after the other."""
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


def furnish() -> None:
    """What the programs expect of a machine: an interface, a route, a folder."""
    CERTIFICATES.mkdir(exist_ok=True)
    for command in (
        "ip link set lo up",
        f"ip address add {SERVICE_ADDRESS}/32 dev lo",
        "ip route add default dev lo",  # the API server wants to know its address
        f"mount -t tmpfs tmpfs {CERTIFICATES}",
    ):
        subprocess.run(command.split(), check=True)
    # A connection in TIME_WAIT holds its port; thousands come and go here.
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 65000")
