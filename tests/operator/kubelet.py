"""A scripted kubelet: moves pods of the API server through their lives, as a test says."""

import json
from datetime import UTC, datetime
from typing import Any

from finetune_api.base import format_time
from finetune_local.cluster import Cluster
from tests.installed import pods

Object = dict[str, Any]


class Kubelet:
    """Writes pod statuses as administrator."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def run(self, name: str) -> None:
        """Scheduled, and its container runs."""
        now = format_time(datetime.now(UTC))
        self._write(
            name,
            {
                "phase": "Running",
                "podIP": "127.0.0.1",
                "startTime": now,
                "conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}
                ],
                "containerStatuses": [_container({"running": {"startedAt": now}})],
            },
        )

    def end(self, name: str, code: int, message: str = "") -> None:
        """Its container has ended."""
        now = format_time(datetime.now(UTC))
        end = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "startedAt": now,
            "finishedAt": now,
            "message": message,
        }
        phase = "Succeeded" if code == 0 else "Failed"
        containers = [_container({"terminated": end})]
        self._write(name, {"phase": phase, "containerStatuses": containers})

    def _write(self, name: str, status: Object) -> None:
        patch = json.dumps({"status": status})
        self._cluster.kubectl(
            "patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch
        )


def _container(state: Object) -> Object:
    return {
        "name": "trainer",
        "image": "trainer:1",
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }


def names(cluster: Cluster, job: str) -> set[str]:
    """Pods of a job that are not being deleted."""
    found = pods(cluster, job)
    return {p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"]}
