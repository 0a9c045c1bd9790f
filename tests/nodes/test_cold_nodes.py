"""Nodes that do not have the trainer image yet."""

import secrets
import time

import pytest

from tests.nodes.scenario import Scenario, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def cold(scenario: Scenario):
    """A job of two workers whose nodes do not have its image; the prepare pod uses the third."""
    cluster = scenario.cluster
    tag = f"cold-{secrets.token_hex(4)}"  # an image that no node has from an earlier scenario
    cluster.images.publish(tag)
    image = scenario.trainer_image.rpartition(":")[0] + f":{tag}"
    warm, *others = cluster.nodes
    for node in others:
        cluster.kubectl("cordon", node)
    scenario.submit("cold", workers=workers(2) | {"image": image})
    scenario.until("the prepare pod to be bound", lambda: scenario.node_of("cold-prepare") == warm)
    cluster.kubectl("cordon", warm)
    for node in others:
        cluster.kubectl("uncordon", node)
    yield scenario
    cluster.registry.seconds = lambda _: 0.0
    cluster.registry.refuses = lambda _: False
    cluster.kubectl("uncordon", warm)


def test_slow_pull_on_the_node_of_worker_0(cold: Scenario):
    """The other worker waits in its pod for the address of worker 0, as long as the pull takes."""

    cold.cluster.registry.seconds = lambda node: 200.0 if _is_on(cold, "cold-1-0", node) else 0.0
    node = cold.node_of("cold-1-0")
    cold.until("the other worker to run", lambda: _runs(cold, "cold-1-1"))
    time.sleep(60)
    shown = cold.status("cold")["message"]
    done = cold.succeeded("cold", 700)
    assert (done["attempt"], done.get("restarts", 0)) == (1, 0)
    # For which pod and node the job waited.
    assert "cold-1-0" in shown, shown
    assert node in shown, shown


def test_image_missing_on_one_node(cold: Scenario):
    """The job names the image, waits without counting, and goes on once the image can be pulled."""
    cold.cluster.registry.refuses = lambda node: _is_on(cold, "cold-1-1", node)
    cold.until("the first worker to run", lambda: _runs(cold, "cold-1-0"))
    status = cold.until(
        "a message about the image",
        lambda: (found := cold.status("cold")) and "Image" in found.get("reason", "") and found,
        120,
    )
    assert "cold-1-1" in status["message"]
    assert "finetune-trainer" in status["message"]
    cold.cluster.registry.refuses = lambda _: False
    done = cold.succeeded("cold", 700)
    assert (done.get("restarts", 0), done.get("countedRestarts", 0)) == (0, 0)


def _is_on(scenario: Scenario, pod: str, address: str) -> bool:
    """Return whether a pod is bound to the node with an address."""
    node = scenario.pods().get(pod, {}).get("spec", {}).get("nodeName")
    return node is not None and scenario.cluster.nodes[node].address == address


def _runs(scenario: Scenario, pod: str) -> bool:
    return bool(scenario.pods().get(pod, {}).get("status", {}).get("phase") == "Running")
