"""A Kubernetes cluster with three real nodes on this computer.

It exists in a network namespace of the test run, and ends with the run, however that ends. Only
files and empty cgroups can be left then, which the next run removes.
"""

import ctypes
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_local.build import binaries
from finetune_local.cache import cache_folder
from finetune_local.machine import ClusterError
from tests.nodes import cgroups, configuration, programs
from tests.nodes.images import Images, program_layer
from tests.nodes.machine import (
    BRIDGE,
    CONTROL_PLANE,
    HOST,
    NODES,
    Machine,
    ip,
    node_address,
    pod_network,
)
from tests.nodes.registry import Registry

DEVICE = "finetune.dev/cpu-device"
DEVICES = 1  # on each node
TAG = "current"
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class _Settings:
    server: str = configuration.SERVER


class NodeCluster:
    """The cluster. Offers what `finetune_local.cluster.Cluster` offers to tests."""

    def __init__(self) -> None:
        self.name = "nodes"
        self.settings = _Settings()
        self.folder = cache_folder() / "nodes"
        self.kubeconfig = self.folder / "admin.conf"
        self.registry = Registry()
        self._lock = (cache_folder() / "nodes.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError("another test run has a cluster of nodes on this computer") from None
        env = os.environ | {"PATH": programs.search_path(), "GOGC": "100"}
        self.images = Images(self.registry)
        self.control_plane = Machine("cp", CONTROL_PLANE, self.folder, env)
        self.nodes = {
            f"node{number}": Machine(f"node{number}", node_address(number), self.folder, env)
            for number in range(1, NODES + 1)
        }

    def up(self) -> None:
        """Start everything and return when all nodes are Ready."""
        self._remove()
        (self.folder / "log").mkdir(parents=True)
        configuration.write(self.folder)
        _enter_own_network()
        self._say("network and registry")
        self._add_pause()
        self.images.publish(TAG)
        self.registry.start(HOST, 5000)
        self.start_control_plane()
        self.kubectl("apply", "-f", "-", stdin=configuration.OBJECTS)
        for name, machine in self.nodes.items():
            self._say(name)
            self.start_node(name)
            self.images.install(machine)
        for name in self.nodes:
            self.wait_ready(name)
            self._set_devices(name)
        self._say("all nodes are Ready")

    def down(self) -> None:
        """End every process and remove every file. Does nothing if nothing was started."""
        self.registry.stop()
        for machine in (*self.nodes.values(), self.control_plane):
            machine.off()
        self._remove()
        self._lock.close()

    def start_control_plane(self) -> None:
        """Start what does not run of the control plane, and return when the API server is ready."""
        machine = self.control_plane
        if not machine.is_on:
            machine.on()
            self._add_routes(machine)
        for daemon, command in configuration.control_plane(self.folder, machine.disk).items():
            machine.start(daemon, *command)
            if daemon == "kube-apiserver":
                self.wait("the API server", lambda: self.kubectl("get", "--raw", "/readyz"), 120)

    def start_node(self, name: str) -> None:
        """Boot a node, or start its daemons that do not run."""
        machine, number = self.nodes[name], list(self.nodes).index(name) + 1
        if not machine.is_on:
            machine.on()
            self._add_routes(machine)
            ip("route", "replace", pod_network(number), "via", machine.address)
        for daemon, command in configuration.node(self.folder, number).items():
            machine.start(daemon, *command)
            if daemon == "containerd":  # without it the kubelet ends at once
                self.wait("containerd", lambda: machine.run("ctr", "version"), 60)

    def wait_ready(self, name: str, *, ready: bool = True, seconds: float = 120) -> None:
        """Wait until a node is Ready, or not."""
        path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        self.wait(
            f"{name} to be {'Ready' if ready else 'not Ready'}",
            lambda: (self.kubectl("get", "node", name, "-o", path) == "True") == ready,
            seconds,
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its output; ClusterError with its message if it fails."""
        command = [str(binaries() / "kubectl"), "--kubeconfig", str(self.kubeconfig)]
        done = subprocess.run(
            [*command, *arguments], input=stdin, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def wait(self, what: str, check: Callable[[], object], seconds: float) -> None:
        """Wait until `check` returns something true and does not fail."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if check():
                    return
                problem = ""
            except (AssertionError, ClusterError) as error:
                problem = f": {error}"
            if time.monotonic() > deadline:
                log = self.folder / "log"
                raise ClusterError(f"waited {seconds} s for {what}{problem}; logs: {log}")
            time.sleep(0.3)

    def _add_pause(self) -> None:
        program = shutil.which("pause", path=programs.search_path())
        assert program is not None
        layer = program_layer(Path(program))
        self.registry.add("pause", "1", [layer], {"Entrypoint": ["/pause"], "User": "65535"})

    def _add_routes(self, machine: Machine) -> None:
        for number, other in enumerate(self.nodes.values(), 1):
            if other is not machine:
                machine.run("ip", "route", "add", pod_network(number), "via", other.address)

    def _set_devices(self, name: str) -> None:
        """Advertise devices that are only a number, as an administrator can."""
        patch = f'{{"status": {{"capacity": {{"{DEVICE}": "{DEVICES}"}}}}}}'
        self.kubectl("patch", "node", name, "--subresource", "status", "--patch", patch)

    def _remove(self) -> None:
        cgroups.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _say(self, text: str) -> None:
        print(f"nodes: {text}", flush=True)


def _enter_own_network() -> None:
    """Give this process a network of its own. Networks of the computer cannot collide with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise ClusterError(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
