"""Daemons of the cluster restart or hang while a gang trains."""

import time

import pytest

from tests.nodes.operator_release import OperatorRelease
from tests.nodes.scenario import Scenario, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LONG = {"maxSteps": 300, "globalBatchSize": 6, "sequenceLength": 128}


def test_restarted_kubelet_and_containerd(scenario: Scenario):
    scenario.submit("steady", workers=workers(1), training=LONG)
    scenario.until_step("steady", 20)
    node = scenario.node_of("steady-1-0")
    for daemon in ("kubelet", "containerd"):
        scenario.cluster.nodes[node].kill(daemon)
        time.sleep(5)
        scenario.cluster.start_node(node)
        scenario.cluster.wait_ready(node)
    done = scenario.succeeded("steady")
    assert (done["attempt"], done.get("restarts", 0)) == (1, 0)


@pytest.mark.parametrize("replicas", [1, 2])
def test_frozen_api_server(scenario: Scenario, release: OperatorRelease, replicas: int):
    """The operator leads again after the API server did not answer for 30 s."""
    release.install("--set", f"replicas={replicas}")
    try:
        scenario.submit("frozen", workers=workers(1), training=LONG)
        scenario.until_step("frozen", 10)
        scenario.cluster.control_plane.freeze("kube-apiserver")
        time.sleep(30)
        scenario.cluster.control_plane.thaw("kube-apiserver")
        before = scenario.status("frozen").get("progress", {}).get("step", 0)
        # A lease of 15 s and 10 s more; the report shows that a process leads.
        scenario.until(
            "a leader that writes progress",
            lambda: scenario.status("frozen").get("progress", {}).get("step", 0) > before,
            60,
        )
        done = scenario.succeeded("frozen")
        assert (done["attempt"], done.get("restarts", 0)) == (1, 0)
    finally:
        release.install("--set", "replicas=1")
