"""Puts the operator onto a test cluster: CRD, rights, and the process itself."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_local.cache import TREE
from finetune_local.cluster import IMAGE, Cluster, ClusterError, die_with_parent

Object = dict[str, Any]


def install(cluster: Cluster) -> None:
    """CustomResourceDefinition and RBAC, as an administrator would."""
    cluster.kubectl("apply", "-f", str(TREE / "crds"))
    cluster.kubectl("apply", "-f", str(TREE / "operator" / "rbac"))
    cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")

    def served() -> bool:
        """A moment after it is established."""
        try:
            cluster.kubectl("get", "finetunejobs", "--all-namespaces")
        except ClusterError:
            return False
        return True

    wait_for("finetunejobs are served", served, 30)


class Operator:
    """The operator process, with the rights of its service account and no more."""

    def __init__(
        self, cluster: Cluster, log: Path, config: Path | None = None, **settings: str
    ) -> None:
        """`settings`: more FINETUNE_* variables, without the prefix."""
        self._log = log
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
        command = [sys.executable, "-m", "finetune_operator"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._env, stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Exit code after SIGTERM."""
        self.signal(signal.SIGTERM)
        return self.wait(15)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Exit code, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(seconds)

    @property
    def running(self) -> bool:
        """Whether the process that was started last is still there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text()


def ready(port: int) -> str:
    """What an operator says that is ready; nothing while it is not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def status(cluster: Cluster, name: str) -> Object:
    """A job's status."""
    item = json.loads(cluster.kubectl("get", "ftj", name, "-o", "json"))
    found: Object = item.get("status", {})
    return found


def pods(cluster: Cluster, name: str) -> list[Object]:
    """A job's pods."""
    selector = f"finetune.dev/job-name={name}"
    items: list[Object] = json.loads(cluster.kubectl("get", "pods", "-l", selector, "-o", "json"))[
        "items"
    ]
    return items


def wait_for(what: str, check: Callable[[], Any], seconds: float = 90) -> Any:
    """Until `check` returns something true, which is returned."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.1)
    return found


def finished(cluster: Cluster, name: str, seconds: float = 120) -> Object:
    """Status of a job once it has ended."""

    def look() -> Object | None:
        found = status(cluster, name)
        return found if found.get("phase") in ("Succeeded", "Failed") else None

    ended: Object = wait_for(f"{name} has finished", look, seconds)
    return ended
