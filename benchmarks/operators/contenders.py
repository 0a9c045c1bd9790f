"""The operators that are compared: how to start them, their jobs, and when a job is steady."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.operators import peer

from finetune_api.base import Object
from finetune_local.cache import TREE
from finetune_local.cluster import IMAGE, Cluster, ClusterError, die_with_parent

PORT = 8081  # of the health endpoint, in the network of the sandbox


class Contender(Protocol):
    """An operator under measurement."""

    name: str
    namespace: str  # of its jobs
    collection: str  # path of its jobs, without namespace
    plural: str
    user: str

    def install(self, cluster: Cluster) -> None:
        """Install definitions and rights."""

    def start(self, cluster: Cluster, log: Path) -> subprocess.Popen[bytes]:
        """Start the process and wait until it is ready for jobs."""

    def job(self, name: str, pods: int) -> Object:
        """Return a job as a user applies it."""

    def steady(self, status: Object, pods: int) -> bool:
        """Return whether a status shows that all pods of the job run."""


@dataclass
class Ours:
    """finetune-operator."""

    name: str = "finetune-operator"
    namespace: str = "ours"
    collection: str = "/apis/finetune.dev/v1alpha1"
    plural: str = "finetunejobs"
    user: str = "system:serviceaccount:finetune-system:finetune-operator"

    def install(self, cluster: Cluster) -> None:
        for folder in (TREE / "crds", TREE / "operator" / "rbac"):
            cluster.kubectl("apply", "-f", str(folder))
        cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
        cluster.kubectl("create", "namespace", self.namespace)
        claim = (
            "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: workspace}, spec: "
            "{accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}}"
        )
        cluster.kubectl("apply", "-n", self.namespace, "-f", "-", stdin=claim)

    def start(self, cluster: Cluster, log: Path) -> subprocess.Popen[bytes]:
        config = cluster.user_kubeconfig("finetune-system", "finetune-operator")
        env = os.environ | {"KUBECONFIG": str(config), "FINETUNE_TRAINER_IMAGE": IMAGE}
        env["FINETUNE_HEALTH_PORT"] = str(PORT)
        process = _spawn([sys.executable, "-m", "finetune_operator"], env, log)
        _wait_until(process, log, self._ready)
        return process

    def _ready(self) -> bool:
        """Return whether all jobs and pods are known."""
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5).close()
        except OSError:
            return False
        return True

    def job(self, name: str, pods: int) -> Object:
        root = "pvc://workspace"
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "model": {"source": f"{root}/models/llama"},
                "dataset": {"train": [{"source": f"{root}/data/train.jsonl"}]},
                "training": {"maxSteps": 10_000, "globalBatchSize": 4 * pods},
                "checkpoints": {"storage": f"{root}/runs/{name}"},
                "workers": {"replicas": pods, "deviceResource": "finetune.dev/cpu-device"},
            },
        }

    def steady(self, status: Object, pods: int) -> bool:
        return bool(
            status.get("phase") == "Running" and status.get("workers", {}).get("running") == pods
        )


@dataclass
class Kubeflow:
    """training-operator v1, as released or without its request limit."""

    lifted: bool
    program: Path
    namespace: str = "theirs"
    collection: str = "/apis/kubeflow.org/v1"
    plural: str = "pytorchjobs"
    user: str = f"system:serviceaccount:{peer.NAMESPACE}:{peer.ACCOUNT}"

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"training-operator {peer.VERSION}" + (", limits lifted" if self.lifted else "")

    def install(self, cluster: Cluster) -> None:
        self._kubeconfig = peer.install(cluster)
        if self.namespace not in cluster.kubectl("get", "namespaces"):
            cluster.kubectl("create", "namespace", self.namespace)

    def start(self, cluster: Cluster, log: Path) -> subprocess.Popen[bytes]:
        env = os.environ | {"KUBECONFIG": str(self._kubeconfig)}
        env["MY_POD_NAMESPACE"] = peer.NAMESPACE
        process = _spawn(peer.command(self.program, lifted=self.lifted), env, log)
        peer.mount_certificate(cluster)
        probe = str(self.job("probe", 2)).replace("'", '"')

        def webhook_works() -> bool:
            try:
                return bool(cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=probe))
            except ClusterError:
                return False

        _wait_until(process, log, webhook_works)
        _wait_until(process, log, lambda: "Starting workers" in log.read_text())
        return process

    def job(self, name: str, pods: int) -> Object:
        return peer.job(name, self.namespace, pods)

    def steady(self, status: Object, pods: int) -> bool:
        counts = status.get("replicaStatuses", {}).values()
        return sum(count.get("active", 0) for count in counts) == pods


def _spawn(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, env=env, stdout=output, stderr=output, preexec_fn=die_with_parent
        )


def _wait_until(
    process: subprocess.Popen[bytes], log: Path, check: Any, seconds: float = 180
) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text().splitlines()[-20:])
            raise ClusterError(f"the operator did not start:\n{tail}")
        time.sleep(0.25)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process, first by SIGTERM."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
