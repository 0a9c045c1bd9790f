"""Bring a local cluster up, say how it is, take it down."""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from finetune_local import layout
from finetune_local.build import binaries
from finetune_local.cache import TREE, clusters_folder
from finetune_local.layout import Identities, Settings
from finetune_local.machine import cluster_needs, no_namespaces, no_room
from finetune_local.pki import Authority, Identity

IMAGE = "finetune-trainer:local"
_PR_SET_PDEATHSIG = 1
_IMAGE_USER = 65532  # "nonroot", as the real image has
_READY_SECONDS = 90.0

_PROVISIONER = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: finetune-local-provisioner}
rules:
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get, list, watch, create, delete, patch]
- {apiGroups: [""], resources: [persistentvolumeclaims], verbs: [get, list, watch]}
- {apiGroups: [storage.k8s.io], resources: [storageclasses], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: finetune-local-provisioner}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: finetune-local-provisioner}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "finetune-local:provisioner"}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: finetune.dev/local
reclaimPolicy: Delete
volumeBindingMode: Immediate
"""


class ClusterError(Exception):
    """A cluster did not do what was asked; the message says what to do."""


class Cluster:
    """One local cluster, known by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = clusters_folder() / name
        self._process: subprocess.Popen[bytes] | None = None  # when this object brought it up

    @property
    def kubeconfig(self) -> Path:
        """Administrator's kubeconfig."""
        return self.directory / "admin.conf"

    @property
    def settings(self) -> Settings:
        """What was chosen when it came up; ClusterError when it is not there."""
        try:
            return Settings.load(self.directory / "cluster.json")
        except FileNotFoundError:
            raise ClusterError(
                f"no cluster {self.name!r}; bring it up: finetune-local up"
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
    ) -> "Cluster":
        """A running cluster with Ready nodes; one of that name that runs already is an error.

        `tied`: it ends with the process that brought it up, however that ends.
        """
        check_machine()
        cluster = cls(name)
        binary = binaries() / "controlplane"
        with _choices() as taken:
            if cluster.supervisor() is not None:
                raise ClusterError(
                    f"cluster {name!r} runs already; "
                    f"take it down: finetune-local down --name {name}"
                )
            shutil.rmtree(cluster.directory, ignore_errors=True)
            cluster._prepare(binary, devices, 0 if control_plane_only else nodes, taken)
        try:
            cluster._start(tied=tied)
            cluster._wait_until_ready()
        except BaseException:
            cluster.down(keep_logs=True)
            raise
        return cluster

    def down(self, *, keep_logs: bool = False) -> None:
        """End every process and remove every file; fine when nothing runs."""
        pid = self.supervisor()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)  # its child, process 1 of the namespace, dies with it
        if self._process is not None:
            self._process.wait()
            self._process = None
        if pid is not None:
            _wait_gone(pid, self.directory)
        if not keep_logs:
            shutil.rmtree(self.directory, ignore_errors=True)
        if not keep_logs and self.directory.exists():
            raise ClusterError(f"{self.directory} could not be removed; remove it by hand")

    def supervisor(self) -> int | None:
        """Process id of what holds the cluster, None when it is down."""
        try:
            pid = int((self.directory / "supervisor.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return None
        return pid if str(self.directory).encode() in command else None

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
        path = self.directory / f"{namespace}-{service_account}.conf"
        _write_private(path, self._kubeconfig({"token": token}))
        return path

    def _prepare(self, binary: Path, devices: int, nodes: int, taken: list[Settings]) -> None:
        for part in ("", "logs", "etcd"):
            (self.directory / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = Settings(self.name, _free_port(), _free_network(taken), devices, nodes)
        settings.save(self.directory / "cluster.json")
        identities = self._identities(settings)
        components = layout.control_plane(self.directory, binary, settings, identities)
        components += [layout.node(self.directory, settings, name) for name in settings.node_names]
        entries = json.dumps([asdict(component) for component in components])
        (self.directory / "components.json").write_text(entries)
        path = os.pathsep.join([str(TREE / ".venv" / "bin"), os.environ.get("PATH", os.defpath)])
        image = {"env": {"PATH": path, "HOME": "/tmp"}, "user": _IMAGE_USER}
        (self.directory / "images.json").write_text(json.dumps({IMAGE: image}))

    def _identities(self, settings: Settings) -> Identities:
        authority = Authority(self.directory / "pki")
        (self.directory / "server").write_text(settings.server)
        identities = Identities(
            ca=authority.certificate,
            api_server=authority.issue(
                "apiserver",
                "kube-apiserver",
                names=("127.0.0.1", "localhost", "kubernetes.default.svc", "10.96.0.1"),
            ),
            kubelet_client=authority.issue(
                "kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",)
            ),
            service_accounts=authority.signing_key("service-accounts"),
        )
        users = {
            "admin": ("finetune-local:admin", ("system:masters",)),
            "controller-manager": ("system:kube-controller-manager", ()),
            "scheduler": ("system:kube-scheduler", ()),
            "provisioner": ("finetune-local:provisioner", ()),
        }
        for file, (user, groups) in users.items():
            self._client(file, authority.issue(file, user, groups))
        for name in settings.node_names:
            identity = authority.issue(
                name, f"system:node:{name}", ("system:nodes",), ("127.0.0.1", name)
            )
            self._client(name, identity)
        return identities

    def _client(self, file: str, identity: Identity) -> None:
        user = {
            "client-certificate": str(identity.certificate),
            "client-key": str(identity.key),
        }
        _write_private(self.directory / f"{file}.conf", self._kubeconfig(user))

    def _kubeconfig(self, user: dict[str, str]) -> str:
        ca = self.directory / "pki" / "ca.crt"
        return layout.kubeconfig(self.settings.server, ca, user)

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
        self._retry(deadline, "apply", "-f", "-", stdin=_PROVISIONER)
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


def check_machine() -> None:
    """ClusterError in words when this machine cannot run a local cluster."""
    if refused := no_namespaces() or no_room(cluster_needs()):
        raise ClusterError(refused)


def die_with_parent() -> None:
    """To be run between fork and exec: the kernel kills us when the parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _choices() -> Iterator[list[Settings]]:
    """What other clusters have taken; nobody else chooses meanwhile."""
    folder = clusters_folder()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = folder.glob("*/cluster.json")
        yield [Settings.load(f) for f in files if Cluster(f.parent.name).supervisor() is not None]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _free_network(taken: list[Settings]) -> str:
    used = {settings.pod_network for settings in taken}
    for second in range(16, 251):
        if (network := f"127.{second}.0.0/16") not in used:
            return network
    raise ClusterError("235 local clusters run already; take some down")


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _wait_gone(pid: int, directory: Path, seconds: float = 15.0) -> None:
    """Until neither the process nor anything it started is left."""
    deadline = time.monotonic() + seconds
    marker = str(directory).encode()
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if not Path(f"/proc/{pid}").exists() and not _any_process_names(marker):
            return
        time.sleep(0.05)
    raise ClusterError(f"processes of {directory} are still there after {seconds:.0f} s")


def _any_process_names(marker: bytes) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(marker) or b"=" + marker in word for word in words):
                return True
    return False
