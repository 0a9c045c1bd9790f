"""Processes that run beside the demo: the operator, the live view and the followers of logs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api import names
from finetune_local.build import binaries
from finetune_local.cluster import IMAGE, Cluster, ClusterError, die_with_parent
from finetune_local.demo.output import DemoError

_INTERVAL = 2.0  # s between two checks
_STOP_TIMEOUT = 5.0  # s for a process to end after a signal
_TAIL = 15  # lines of a log that are shown


def environment(cluster: Cluster) -> dict[str, str]:
    """Return the environment of a command that uses the cluster as its administrator."""
    path = f"{Path(sys.executable).parent}:{binaries()}:{os.environ.get('PATH', os.defpath)}"
    return os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "PATH": path}


@contextmanager
def operator(cluster: Cluster, log: Path, *, keep: bool) -> "Iterator[subprocess.Popen[bytes]]":
    """Run the operator with its own service account, never as administrator."""
    config = cluster.user_kubeconfig("finetune-system", "finetune-operator")
    env = environment(cluster) | {"KUBECONFIG": str(config), "FINETUNE_TRAINER_IMAGE": IMAGE}
    command = [sys.executable, "-m", "finetune_local.demo.run_with_cluster", cluster.name]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, sys.executable, "-m", "finetune_operator"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    finished = False
    try:
        yield process
        finished = True
    finally:
        if not (keep and finished):
            process.terminate()
            process.wait()


def watch(
    command: list[str],
    env: dict[str, str],
    operator: "subprocess.Popen[bytes]",
    log: Path,
    while_running: Callable[[], None],
) -> int:
    """Run the live view and return its exit code, calling `while_running` every 2 seconds.

    Raises DemoError with the end of `log` if the operator ends first.
    """
    # The hook is safe, because only the main thread of the demo starts processes.
    process = subprocess.Popen(command, env=env, preexec_fn=die_with_parent)
    try:
        while (code := process.poll()) is None:
            if (ended := operator.poll()) is not None:
                process.send_signal(signal.SIGINT)  # so that it restores the terminal
                tail = log.read_text(errors="replace").splitlines()[-_TAIL:]
                raise DemoError(
                    "\n".join(
                        [f"the operator ended with exit code {ended}; the end of {log}:", *tail]
                    )
                )
            while_running()
            time.sleep(_INTERVAL)
        return code
    finally:
        _wait_or_kill(process)


@contextmanager
def pod_logs(cluster: Cluster, job: str, folder: Path) -> Iterator[Callable[[], None]]:
    """Keep the logs of all pods of a job, including pods that are deleted before the job ends.

    Yields a function that begins to follow the logs of new pods. At the end the complete logs of
    the remaining pods are read once more.
    """
    folder.mkdir()
    followers: dict[str, subprocess.Popen[bytes]] = {}

    def follow_new_pods() -> None:
        for name in _started_pods(cluster, job):
            if name not in followers:
                followers[name] = _follow(cluster, name, folder / f"{name}.log")

    try:
        yield follow_new_pods
        for name in _started_pods(cluster, job):
            (folder / f"{name}.log").write_text(cluster.kubectl("logs", name))
    finally:
        for process in followers.values():
            process.terminate()
            _wait_or_kill(process)


def _started_pods(cluster: Cluster, job: str) -> list[str]:
    selector = f"{names.LABEL_JOB_NAME}={job}"
    try:
        pods = json.loads(cluster.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    except ClusterError:
        return []  # the live view reports that the API server is down
    return [
        pod["metadata"]["name"]
        for pod in pods
        for container in pod["status"].get("containerStatuses", [])
        if container["name"] == names.CONTAINER and "waiting" not in container["state"]
    ]


def _follow(cluster: Cluster, pod: str, path: Path) -> "subprocess.Popen[bytes]":
    command = [str(binaries() / "kubectl"), "--kubeconfig", str(cluster.kubeconfig)]
    with path.open("wb") as file:
        return subprocess.Popen(
            [*command, "logs", "-f", pod], stdout=file, stderr=file, preexec_fn=die_with_parent
        )


def _wait_or_kill(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
