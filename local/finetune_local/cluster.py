"""Brings a local cluster up, reports its state and takes it down."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune_local.build import binaries
from finetune_local.cache import TREE, clusters_folder
from finetune_local.cluster_files import IMAGE, write_files, write_kubeconfig
from finetune_local.layout import SOCKETS, Settings
from finetune_local.machine import ClusterError, check_machine, die_with_parent
from finetune_local.manifests import MANIFESTS
from finetune_local.ports import free_port
from finetune_local.processes import command_of, wait_gone

__all__ = ["IMAGE", "Cluster", "ClusterError", "check_machine", "die_with_parent", "lock_clusters"]

# Names are parts of node names and names of folders.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,29}[a-z0-9])?")
_SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108 bytes with the terminator
_READY_SECONDS = 90.0


class Cluster:
    """A local cluster, identified by its name."""

    def __init__(self, name: str) -> None:
        """Raise ClusterError if the name is not valid: folders are created and deleted by it."""
        if not _NAME.fullmatch(name):
            raise ClusterError(
                f"{name!r} is not a valid cluster name; use 1 to 31 characters of a-z, 0-9 and -, "
                "and begin and end with a letter or a digit"
            )
        self.name = name
        self.directory = clusters_folder() / name
        self._is_ours = False  # whether this object brought the cluster up or is doing so
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.directory / "admin.conf"

    @property
    def settings(self) -> Settings:
        """The settings that the cluster was brought up with; ClusterError if it does not exist."""
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
        tied: bool = False,
        api_server_flags: Sequence[str] = (),
    ) -> "Cluster":
        """Bring a cluster up and return it when all its nodes are Ready.

        With no nodes only the control plane runs. A `tied` cluster ends with the process that
        brought it up, however that process ends. Raises ClusterError if a cluster of that name
        already runs.
        """
        cluster = cls(name)
        check_machine()
        cluster._check_sockets()
        binary = binaries() / "controlplane"
        try:
            # The lock is held until the supervisor runs: only then can other processes see which
            # network the cluster uses.
            with lock_clusters() as running:
                network = _free_network(running)
                settings = Settings(name, free_port(), network, devices, nodes, str(TREE))
                cluster._begin(binary, settings, api_server_flags, tied=tied)
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
        """End every process and remove every file, except for the logs if `keep_logs` is set.

        Does nothing if the cluster does not exist.
        """
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
        """Return the process id of the cluster's supervisor, or None while the cluster is down."""
        try:
            pid = int((self.directory / "supervisor.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if str(self.directory) in command_of(pid) else None

    def other_checkout(self) -> Path | None:
        """Return the checkout that the cluster was started from if it is another one and exists."""
        try:
            tree = Path(self.settings.tree)
        except ClusterError:
            return None
        return tree if tree.is_absolute() and tree != TREE and tree.is_dir() else None

    def kubectl(
        self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None
    ) -> str:
        """Run kubectl and return its output; ClusterError with its message if it fails."""
        command = [str(binaries() / "kubectl"), "--kubeconfig", str(kubeconfig or self.kubeconfig)]
        done = subprocess.run(
            [*command, *arguments], input=stdin, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def user_kubeconfig(self, namespace: str, service_account: str) -> Path:
        """Write a kubeconfig with the rights of a service account; its token is valid for a day."""
        token = self.kubectl(
            "create", "token", service_account, "--namespace", namespace, "--duration", "24h"
        ).strip()
        file = f"{namespace}-{service_account}"
        return write_kubeconfig(self.directory, file, self.settings, {"token": token})

    def _check_sockets(self) -> None:
        longest = max((str(self.directory / name) for name in SOCKETS), key=len)
        if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
            raise ClusterError(
                f"the path {longest} is too long for a socket (at most {_SOCKET_PATH_BYTES} "
                "bytes); choose a shorter cluster name, or set XDG_STATE_HOME to another folder"
            )

    def _begin(
        self, binary: Path, settings: Settings, api_server_flags: Sequence[str], *, tied: bool
    ) -> None:
        if self.supervisor() is not None:
            if (owner := self.other_checkout()) is not None:
                raise ClusterError(
                    f"cluster {self.name!r} already runs, started from the checkout {owner}; "
                    "choose another name with --name"
                )
            raise ClusterError(
                f"cluster {self.name!r} already runs; "
                f"take it down: finetune-local down --name {self.name}"
            )
        self._remove()
        self._is_ours = True
        write_files(self.directory, settings, binary, api_server_flags)
        self._start(tied=tied)

    def _remove_all_but(self, *names: str) -> None:
        for entry in self.directory.iterdir():
            if entry.is_dir() and entry.name not in names:
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in names:
                entry.unlink()

    def _remove(self) -> None:
        """Delete the cluster's folder; ClusterError if it contains files but no cluster.json."""
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
                [*command, "-m", "finetune_local.supervisor", str(self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                # The hook is safe: only the main thread of a test run or of the demo brings up a
                # tied cluster.
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


@contextmanager
def lock_clusters() -> Iterator[list[Cluster]]:
    """Yield the running clusters; meanwhile no other process can begin to bring one up."""
    with (clusters_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        names = [file.parent.name for file in clusters_folder().glob("*/cluster.json")]
        clusters = [Cluster(name) for name in names if _NAME.fullmatch(name)]
        yield [cluster for cluster in clusters if cluster.supervisor() is not None]


def down_all() -> list[str]:
    """Take down the clusters that were started from this checkout and return their names."""
    with lock_clusters() as running:
        own = [cluster for cluster in running if cluster.settings.tree == str(TREE)]
        for cluster in own:
            cluster.down()
    return [cluster.name for cluster in own]


def _free_network(running: list[Cluster]) -> str:
    used = {cluster.settings.pod_network for cluster in running}
    for second in range(16, 251):
        if (network := f"127.{second}.0.0/16") not in used:
            return network
    raise ClusterError("235 local clusters already run; take some down")
