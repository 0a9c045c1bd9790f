"""A gang of which one worker's node has to pull the image first."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.cluster import Cluster
from finetune_local.node.pulls import PULL_SECONDS
from tests.e2e.conftest import VOLUME, create_job, make_workspace
from tests.installed import Operator, finished, install, pods, status, wait_for
from tests.tools import clusters

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
PULL = 150  # s; the other workers once gave up after 120


@pytest.fixture
def cold(tmp_path_factory) -> Iterator[Cluster]:
    """A cluster whose nodes have not run the image yet."""
    cluster = clusters.up_with_audit_log(f"test-cold-{os.getpid()}", devices=1, nodes=2)
    install(cluster)
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    cluster.kubectl("apply", "-f", "-", stdin=VOLUME.format(path=workspace))
    yield cluster
    cluster.down()


def test_a_slow_pull_on_the_node_of_worker_0_costs_no_restart(cold: Cluster, tmp_path: Path):
    operator = Operator(cold, tmp_path / "operator.log")
    operator.start()
    try:
        training = {"maxSteps": 10, "globalBatchSize": 4, "sequenceLength": 128}
        create_job(cold, "cold", training=training)
        warm = wait_for("the prepare pod to run", lambda: node_of(cold, "cold-prepare"))
        cold.kubectl("annotate", "node", "--all", f"{PULL_SECONDS}={PULL}")
        cold.kubectl("cordon", warm)
        assert wait_for("worker 0 to have a node", lambda: node_of(cold, "cold-1-0")) != warm
        cold.kubectl("uncordon", warm)
        wait_for("worker 1 to run", lambda: phase_of(cold, "cold-1-1") == "Running")
        waiting = wait_for(
            "the status to name the worker that does not run",
            lambda: (
                (s := status(cold, "cold"))["phase"] == "Starting"
                and "cold-1-0" in s["message"]
                and s
            ),
            60,
        )
        assert "stage" not in waiting
        done = finished(cold, "cold", PULL + 120)
        assert done["phase"] == "Succeeded", done["message"] + operator.log[-2000:]
        assert (done.get("restarts", 0), len(done["attempts"])) == (0, 1)
    finally:
        operator.kill()


def find(cluster: Cluster, name: str):
    return next((p for p in pods(cluster, "cold") if p["metadata"]["name"] == name), None)


def phase_of(cluster: Cluster, name: str) -> str | None:
    pod = find(cluster, name)
    return pod and pod["status"]["phase"]


def node_of(cluster: Cluster, name: str) -> str | None:
    """Return the node of a pod that the kubelet has accepted."""
    pod = find(cluster, name)
    return pod["spec"]["nodeName"] if pod and "startTime" in pod["status"] else None
