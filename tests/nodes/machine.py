"""Machines of the test cluster: sets of namespaces, each with its own address, disk and processes.

The first process of a machine is `pause`. Killing it is a power cut: every process, mount and
network link of the machine ends with it, and only its disk remains. A machine also ends with the
test run, however that ends.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from finetune_local.machine import die_with_parent
from finetune_local.processes import children_of

BRIDGE = "lan0"
HOST = "10.97.0.1"
CONTROL_PLANE = "10.97.0.2"
NODES = 3
_NAMESPACES = ("--mount", "--pid", "--net", "--uts")
# The kubelet insists on three settings of the kernel. It sees files instead, because they would
# change the behavior of the whole computer.
_BOOT = """
name=$1 disk=$2 address=$3 gateway=$4
hostname "$name"
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p "$disk/lib" "$disk/log"
mount --bind "$disk/lib" /var/lib
mount --bind "$disk/log" /var/log
mkdir /run/sysctl
cd /run/sysctl
echo 1 > overcommit_memory
echo 10 > panic
echo 1 > panic_on_oops
mount --bind overcommit_memory /proc/sys/vm/overcommit_memory
mount --bind panic /proc/sys/kernel/panic
mount --bind panic_on_oops /proc/sys/kernel/panic_on_oops
ip link set lo up
ip addr add "$address/24" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
echo 1 > /proc/sys/net/ipv4/ip_forward
"""


def node_address(number: int) -> str:
    """Return the address of a node, numbered from 1."""
    return f"10.97.0.{10 + number}"


def pod_network(number: int) -> str:
    """Return the addresses of the pods of a node."""
    return f"10.98.{number}.0/24"


class Machine:
    """One machine, which is off until `on` is called."""

    def __init__(self, name: str, address: str, folder: Path, env: dict[str, str]) -> None:
        self.name, self.address, self.disk = name, address, folder / name
        self._log, self._env = folder / "log", env
        self._init: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def is_on(self) -> bool:
        return self._init is not None

    def on(self) -> None:
        """Boot: namespaces, mounts and the network. No daemon is started."""
        self.disk.mkdir(parents=True, exist_ok=True)
        unshare = ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "--kill-child", "pause"]
        with (self._log / f"{self.name}.log").open("ab") as log:
            self._init = subprocess.Popen(
                unshare,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # ^C in a terminal must not reach it
                preexec_fn=die_with_parent,
            )
        self._pid = _child(self._init.pid)
        _until(lambda: Path(f"/proc/{self._pid}/comm").read_text().strip() == "pause")
        link = ["link", "add", self.name, "type", "veth", "peer", "name", "eth0"]
        ip(*link, "netns", str(self._pid))
        ip("link", "set", self.name, "master", BRIDGE, "up")
        self.run("sh", "-euc", _BOOT, "sh", self.name, str(self.disk), self.address, HOST)

    def off(self) -> None:
        """Cut the power: every process ends at once, and the disk stays as it is."""
        if self._init is None:
            return
        os.kill(self._pid, signal.SIGKILL)
        # The first process is gone only when the parents of all others have waited for them, and
        # nsenter does not wait while it is frozen with its child.
        for entered in self._daemons.values():
            entered.kill()
            entered.wait()
        self._daemons.clear()
        self._init.wait()
        self._init = None
        subprocess.run(["ip", "link", "del", self.name], check=False, capture_output=True)

    def cut(self) -> None:
        """Unplug the network cable. The processes go on."""
        ip("link", "set", self.name, "down")

    def join(self) -> None:
        """Plug the network cable in again."""
        ip("link", "set", self.name, "up")

    def run(self, *command: str) -> str:
        """Run a command on the machine and return its output; AssertionError if it fails."""
        done = subprocess.run(
            self._enter(command), env=self._env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{self.name}: {' '.join(command)}: {done.stderr.strip()}"
        return done.stdout

    def start(self, daemon: str, *command: str) -> None:
        """Start a daemon, unless it runs. Its log is `log/MACHINE-DAEMON.log`."""
        running = self._daemons.get(daemon)
        if running is not None and running.poll() is None:
            return
        with (self._log / f"{self.name}-{daemon}.log").open("ab") as log:
            self._daemons[daemon] = subprocess.Popen(
                self._enter(command),
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, daemon: str) -> None:
        """Send SIGKILL to a daemon and wait until it has ended."""
        entered = self._daemons.pop(daemon)
        os.kill(_child(entered.pid), signal.SIGKILL)
        entered.wait()

    def freeze(self, daemon: str) -> None:
        """Send SIGSTOP to a daemon: its connections stay open and nothing answers."""
        os.kill(_child(self._daemons[daemon].pid), signal.SIGSTOP)

    def thaw(self, daemon: str) -> None:
        """Send SIGCONT to a daemon. nsenter has stopped itself together with its child."""
        entered = self._daemons[daemon].pid
        os.kill(_child(entered), signal.SIGCONT)
        os.kill(entered, signal.SIGCONT)

    def _enter(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", "--target", str(self._pid), *_NAMESPACES, "--", *command]


def ip(*arguments: str) -> None:
    """Run ip(8) in the network of the test run."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"


def _child(process: int) -> int:
    """Return the process that unshare or nsenter forked inside of the namespaces."""
    _until(lambda: children_of(process))
    return children_of(process)[0]


def _until(check: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"a process did not start or end within {seconds} s"
        time.sleep(0.02)
