"""Bring a local cluster up, say how it is, take it down."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_local.build import binaries
from finetune_local.cache import clusters_folder
from finetune_local.components import Components
from finetune_local.layout import AUDIT_LOG, SOCKETS, Settings
from finetune_local.machine import ClusterError, check_machine, die_with_parent
from finetune_local.ports import free_port
from finetune_local.prepare import IMAGE, write_files, write_kubeconfig
from finetune_local.processes import command_of, wait_gone
from finetune_local.roles import MANIFESTS

__all__ = ["IMAGE", "Cluster", "ClusterError", "check_machine", "die_with_parent", "sweep"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,29}[a-z0-9])?")  # a part of node names, and a folder
_SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108 with the end
_READY_SECONDS = 90.0


class Cluster:
    """One local cluster, known by its name."""

    def __init__(self, name: str) -> None:
        """ClusterError for what is no name: folders are made and deleted by it."""
        if not _NAME.fullmatch(name):
            raise ClusterError(
                f"{name!r} is no name of a cluster; allowed are 1 to 31 of a-z, 0-9 and -, "
                "the first and the last one not -"
            )
        self.name = name
        self.directory = clusters_folder() / name
        self._is_ours = False  # this object brings it up, or did
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def kubeconfig(self) -> Path:
        """Administrator's kubeconfig."""
        return self.directory / "admin.conf"

    @property
    def audit_log(self) -> Path:
        """What the API server was asked, if it was brought up to note that."""
        return self.directory / AUDIT_LOG

    @property
    def settings(self) -> Settings:
        """What was chosen when it came up; ClusterError when it is not there."""
        try:
            return Settings.load(self.directory / "cluster.json")
        except FileNotFoundError:
            raise ClusterError(
                f"no cluster {self.name!r}; bring it up: finetune-local up --name {self.name}"
            ) from None

    @classmethod
    def up(
        cls,
        name: str,
        *,
        devices: int = 2,
        nodes: int = 1,
        control_plane_only: bool = False,
        tied: bool = False,
        audit: bool = False,
    ) -> "Cluster":
        """A running cluster with Ready nodes; one of that name that runs already is an error.

        `tied`: it ends with the process that brought it up, however that ends. `audit`: the API
        server notes what service accounts ask of it (`audit_log`).
        """
        cluster = cls(name)
        check_machine()
        cluster._check_sockets()
        binary = binaries() / "controlplane"
        try:
            # The lock is held until the supervisor is there: only then others see what is taken.
            with _choices() as taken:
                count = 0 if control_plane_only else nodes
                cluster._begin(binary, devices, count, taken, tied=tied, audit=audit)
            cluster._wait_until_ready()
        except ClusterError:
            if cluster._is_ours:
                cluster.down(keep_logs=True)
            raise
        except BaseException:
            if cluster._is_ours:
                cluster.down()
            raise
        return cluster

    def down(self, *, keep_logs: bool = False) -> None:
        """End every process and remove every file (but the logs); fine when nothing runs."""
        pid = self.supervisor()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)  # its child, process 1 of the namespace, dies with it
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if pid is not None:
            wait_gone(pid, self.directory)
        if keep_logs:
            self._remove_all_but("logs", "cluster.json")
        else:
            self._remove()

    def supervisor(self) -> int | None:
        """Process id of what holds the cluster, None when it is down."""
        try:
            pid = int((self.directory / "supervisor.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if str(self.directory) in command_of(pid) else None

    def component(self, name: str) -> int | None:
        """Process id of etcd, kube-apiserver, NAME-node-1, ...; None while it is down."""
        return self._components().pid(name)

    def kill_component(self, name: str, *, stay_down: bool = False) -> None:
        """kill -9 one component; it is started again soon, or when `start_component` says so.

        A node's agent takes the processes of its pods along: it is as if the machine were lost.
        """
        self._components().kill(name, stay_down=stay_down)

    def start_component(self, name: str) -> None:
        """Start what was killed; returns when the process is there, not when it is ready."""
        self._components().start(name)

    def _components(self) -> Components:
        pid = self.supervisor()
        if pid is None:
            raise ClusterError(f"cluster {self.name!r} is down")
        return Components(self.directory, pid)

    def kubectl(
        self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None
    ) -> str:
        """Output of kubectl; ClusterError with its words when it fails."""
        command = [str(binaries() / "kubectl"), "--kubeconfig", str(kubeconfig or self.kubeconfig)]
        done = subprocess.run(
            [*command, *arguments], input=stdin, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def user_kubeconfig(self, namespace: str, service_account: str) -> Path:
        """A kubeconfig that is the service account and nothing more; its token lives a day."""
        token = self.kubectl(
            "create", "token", service_account, "--namespace", namespace, "--duration", "24h"
        ).strip()
        file = f"{namespace}-{service_account}"
        return write_kubeconfig(self.directory, file, self.settings, {"token": token})

    def _check_sockets(self) -> None:
        longest = max((str(self.directory / name) for name in SOCKETS), key=len)
        if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
            raise ClusterError(
                f"{longest} is too long for a socket ({_SOCKET_PATH_BYTES} bytes); "
                "choose a shorter name, or another folder by XDG_STATE_HOME"
            )

    def _begin(
        self,
        binary: Path,
        devices: int,
        nodes: int,
        taken: list[Settings],
        *,
        tied: bool,
        audit: bool,
    ) -> None:
        if self.supervisor() is not None:
            raise ClusterError(
                f"cluster {self.name!r} runs already; "
                f"take it down: finetune-local down --name {self.name}"
            )
        self._remove()
        self._is_ours = True
        settings = Settings(self.name, free_port(), _free_network(taken), devices, nodes, audit)
        write_files(self.directory, settings, binary)
        self._start(tied=tied)

    def _remove_all_but(self, *names: str) -> None:
        for entry in self.directory.iterdir():
            if entry.is_dir() and entry.name not in names:
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in names:
                entry.unlink()

    def _remove(self) -> None:
        """Delete the folder, if it is a cluster's: one that holds cluster.json."""
        if not self.directory.exists():
            return
        if not (self.directory / "cluster.json").is_file() and any(self.directory.iterdir()):
            raise ClusterError(
                f"{self.directory} is not the folder of a cluster (it has no cluster.json); "
                "remove it by hand"
            )
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            raise ClusterError(f"{self.directory} could not be removed; remove it by hand")

    def _start(self, *, tied: bool) -> None:
        namespace = ["--user", "--map-root-user", "--pid", "--mount", "--fork", "--kill-child"]
        command = ["unshare", *namespace, "--mount-proc", sys.executable]
        with (self.directory / "logs" / "supervisor.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-m", "finetune_local.supervise", str(self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                # Only the main thread of a test run or of the demo brings up a tied cluster.
                preexec_fn=die_with_parent if tied else None,
            )
        (self.directory / "supervisor.pid").write_text(str(self._process.pid))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        self._retry(deadline, "get", "--raw", "/readyz")
        self._retry(deadline, "apply", "-f", "-", stdin=MANIFESTS)
        self._retry(deadline, "get", "serviceaccount", "default")
        for name in self.settings.node_names:
            self._retry(deadline, "get", "node", name)
            self._retry(deadline, "wait", "--for=condition=Ready", f"node/{name}", "--timeout=5s")

    def _retry(self, deadline: float, *arguments: str, stdin: str | None = None) -> None:
        while True:
            try:
                self.kubectl(*arguments, stdin=stdin)
                return
            except ClusterError as error:
                if self.supervisor() is None or time.monotonic() > deadline:
                    raise ClusterError(
                        f"cluster {self.name!r} did not become ready ({error}); "
                        f"its logs: {self.directory / 'logs'}"
                    ) from error
            time.sleep(0.25)


def sweep(prefix: str) -> None:
    """Remove the files of clusters that died with the test run that had brought them up."""
    with _choices():  # nobody is between writing files and starting
        for cluster in _clusters():
            if cluster.name.startswith(prefix) and cluster.supervisor() is None:
                cluster._remove()


@contextmanager
def _choices() -> Iterator[list[Settings]]:
    """What other clusters have taken; nobody else chooses meanwhile."""
    with (clusters_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield [c.settings for c in _clusters() if c.supervisor() is not None]


def _clusters() -> list[Cluster]:
    names = [file.parent.name for file in clusters_folder().glob("*/cluster.json")]
    return [Cluster(name) for name in names if _NAME.fullmatch(name)]


def _free_network(taken: list[Settings]) -> str:
    used = {settings.pod_network for settings in taken}
    for second in range(16, 251):
        if (network := f"127.{second}.0.0/16") not in used:
            return network
    raise ClusterError("235 local clusters run already; take some down")
