"""Records what the API server shows of a scenario, with times, for the report of a failure."""

import json
import threading
import time
from datetime import datetime
from pathlib import Path

from kubernetes import config
from urllib3.exceptions import HTTPError

from finetune_api.base import Object
from finetune_local.machine import ClusterError
from finetune_operator import informer, jobs
from tests.nodes.cluster import NodeCluster


class Record:
    """Writes each change of the jobs and pods of a namespace to a file, one per line."""

    def __init__(self, cluster: NodeCluster, namespace: str, file: Path) -> None:
        self._cluster, self._namespace, self._file = cluster, namespace, file
        self._output = file.open("w")
        self._ended = threading.Event()
        self._last: dict[str, str] = {}
        self._started = time.monotonic()
        paths = {jobs.collection(namespace): _job, informer.path(namespace): _pod}
        for path, describe in paths.items():
            arguments = (path, describe)
            threading.Thread(target=self._watch, args=arguments, daemon=True).start()

    def close(self) -> None:
        """Add what kubectl describes and the log of the operator, and end."""
        self._ended.set()
        own = ("--namespace", self._namespace)
        system = ("--namespace", "finetune-system")
        for command in (
            ("get", "ftj,pods", "--output", "wide", *own),
            ("describe", "ftj", *own),
            ("get", "events", "--sort-by=.lastTimestamp", *own),
            ("get", "ftj", "--output", "yaml", *own),
            ("get", "nodes"),
            ("get", "pods", *system),
            ("logs", "deployment/finetune-operator", "--tail=300", *system),
        ):
            try:
                text = self._cluster.kubectl(*command)
            except ClusterError as error:
                text = str(error)
            self._output.write(f"\n$ kubectl {' '.join(command)}\n{text}")
        self._output.close()

    def _watch(self, path: str, describe) -> None:
        pool = config.new_client_from_config(str(self._cluster.kubeconfig)).rest_client.pool_manager
        url = f"{self._cluster.settings.server}{path}?watch=true&timeoutSeconds=600"
        while not self._ended.is_set():
            try:
                answer = pool.request("GET", url, preload_content=False, timeout=600, retries=False)
                for line in answer:
                    if self._ended.is_set():
                        return
                    event = json.loads(line)
                    self._write(event["type"], describe(event["object"]))
            except (HTTPError, ValueError, KeyError) as error:
                self._write("INTERRUPTED", type(error).__name__)
                time.sleep(1)

    def _write(self, kind: str, text: str) -> None:
        name = text.partition(" ")[0]
        if self._last.get(name) == text and kind != "DELETED":
            return
        self._last[name] = text
        now = datetime.now().strftime("%H:%M:%S.%f")[:-3]
        seconds = time.monotonic() - self._started
        if not self._ended.is_set():
            self._output.write(f"{now} {seconds:6.1f} {kind[:8]:8} {text}\n")
            self._output.flush()


def _job(job: Object) -> str:
    status = job.get("status", {})
    progress, workers = status.get("progress") or {}, status.get("workers") or {}
    usage = status.get("usage") or {}
    parts = [
        f"job/{job['metadata']['name']}",
        status.get("phase", "-"),
        f"attempt={status.get('attempt')}",
        f"restarts={status.get('restarts', 0)}/{status.get('countedRestarts', 0)}",
        f"step={progress.get('step')}",
        f"running={workers.get('running')}",
        f"seconds={usage.get('deviceSeconds')}",
        f"reason={status.get('reason')!r}",
        repr(status.get("message")),
    ]
    return " ".join(map(str, parts))


def _pod(pod: Object) -> str:
    status, meta = pod.get("status", {}), pod["metadata"]
    containers = [
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ]
    states = [f"{c['name']}={_state(c.get('state') or {})}" for c in containers]
    parts = [
        f"pod/{meta['name']}",
        pod["spec"].get("nodeName", "-"),
        status.get("phase", "-"),
        status.get("reason", ""),
        f"deleting={meta['deletionTimestamp']}" if "deletionTimestamp" in meta else "",
        *states,
    ]
    return " ".join(part for part in parts if part)


def _state(state: Object) -> str:
    for kind, details in state.items():
        if kind == "terminated":
            return f"terminated:{details.get('exitCode')}:{details.get('reason')}"
        return f"{kind}:{details.get('reason', '')}"
    return "none"
