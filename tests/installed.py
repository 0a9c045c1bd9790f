"""Installs and runs the operator on a test cluster, and reads objects from the cluster."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes import config
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from finetune_api.base import Object
from finetune_local.cache import TREE
from finetune_local.cluster import IMAGE, Cluster, ClusterError, die_with_parent
from finetune_operator import informer, jobs


def install(cluster: Cluster) -> None:
    """Install the CustomResourceDefinition and RBAC, as an administrator would."""
    cluster.kubectl("apply", "-f", str(TREE / "crds"))
    cluster.kubectl("apply", "-f", str(TREE / "operator" / "rbac"))
    cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")

    def served() -> bool:
        # The API server serves the resource a moment after it is established.
        try:
            cluster.kubectl("get", "finetunejobs", "--all-namespaces")
        except ClusterError:
            return False
        return True

    wait_for("finetunejobs to be served", served, 30)


class Operator:
    """The operator process, with only the rights of its service account."""

    def __init__(
        self,
        cluster: Cluster,
        log: Path,
        config: Path | None = None,
        command: Sequence[str] = (sys.executable, "-m", "finetune_operator"),
        **settings: str,
    ) -> None:
        """`settings` are more FINETUNE_* variables, without the prefix."""
        self._log, self._command = log, command
        config = config or cluster.user_kubeconfig("finetune-system", "finetune-operator")
        self._env = os.environ | {
            "KUBECONFIG": str(config),
            "FINETUNE_TRAINER_IMAGE": IMAGE,
            "FINETUNE_REPORT_INTERVAL_SECONDS": "0.5",
            "FINETUNE_PROGRESS_WRITE_SECONDS": "0.5",
            "FINETUNE_RESTART_BACKOFF_SECONDS": "1",
        }
        self._env |= {f"FINETUNE_{name}": value for name, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(15)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Wait until the process has ended and return its exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    @property
    def running(self) -> bool:
        """Whether the process that was started last still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text()


def ready(port: int, page: str = "readyz") -> str:
    """Return the text of a health endpoint; empty while the operator is not ready, or not alive."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def ask(cluster: Cluster, path: str, **query: str) -> Object:
    """Return the object at a path, read as an administrator."""
    found: Object = json.loads(read(cluster, path, **query))
    return found


def read(cluster: Cluster, path: str, **query: str) -> str:
    """Return the response to a GET; ClusterError if it fails or the API server is down.

    Tests that wait poll often, and kubectl would take 0.2 s of CPU each time.
    """
    client = _client(cluster.kubeconfig, cluster.kubeconfig.stat().st_mtime_ns)
    url = f"{cluster.settings.server}{path}?{urlencode(query)}"
    try:
        answer = client.request("GET", url, timeout=10, retries=False)
    except HTTPError as error:
        raise ClusterError(f"{path}: {error}") from error
    text = answer.data.decode(errors="replace")
    if answer.status >= 300:
        raise ClusterError(f"{path}: {text}")
    return text


@functools.cache
def _client(kubeconfig: Path, _modified_ns: int) -> PoolManager:
    pool: PoolManager = config.new_client_from_config(str(kubeconfig)).rest_client.pool_manager
    return pool


def status(cluster: Cluster, name: str) -> Object:
    """Return the status of a job."""
    found: Object = ask(cluster, jobs.path(("default", name))).get("status", {})
    return found


def pods(cluster: Cluster, name: str) -> list[Object]:
    """Return the pods of a job."""
    selector = f"finetune.dev/job-name={name}"
    items: list[Object] = ask(cluster, informer.path("default"), labelSelector=selector)["items"]
    return items


def wait_for(what: str, check: Callable[[], Any], seconds: float = 90) -> Any:
    """Wait until `check` returns something true, and return that."""
    deadline, pause = time.monotonic() + seconds, 0.1
    while not (found := check()):
        assert time.monotonic() < deadline, f"timed out after {seconds} s waiting for: {what}"
        time.sleep(pause)
        pause = min(pause * 1.2, 0.5)  # leave the CPU to what is waited for
    return found


def finished(cluster: Cluster, name: str, seconds: float = 120) -> Object:
    """Wait until a job has ended and return its status."""

    def final_status() -> Object | None:
        found = status(cluster, name)
        return found if found.get("phase") in ("Succeeded", "Failed") else None

    ended: Object = wait_for(f"{name} to end", final_status, seconds)
    return ended
