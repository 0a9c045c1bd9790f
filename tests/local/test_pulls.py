"""A node that takes time to pull an image."""

import time

import pytest

from finetune_local.node.pulls import PULL_SECONDS, Pulls
from tests.installed import wait_for
from tests.local.pods import container, create, ended, get, pod


class Node:
    """Answers the request for a node with an annotation."""

    def __init__(self, seconds: str | None) -> None:
        self.annotations = {PULL_SECONDS: seconds} if seconds else {}

    async def get(self, path: str) -> dict:
        assert path == "/api/v1/nodes/cold"
        return {"metadata": {"annotations": self.annotations}}


async def test_an_image_is_pulled_once():
    now = [0.0]
    pulls = Pulls(Node("200"), "cold", lambda: now[0])
    assert await pulls.seconds_left(["a"]) == 200
    now[0] = 150
    assert await pulls.seconds_left(["a"]) == 50
    assert await pulls.seconds_left(["b", "a"]) == 200
    now[0] = 400
    assert await pulls.seconds_left(["b", "a"]) == 0


async def test_without_the_annotation_images_are_there():
    assert await Pulls(Node(None), "cold").seconds_left(["a"]) == 0


@pytest.mark.cluster
@pytest.mark.slow
def test_a_pod_has_a_node_and_no_address_while_its_image_is_pulled(cluster):
    first = get_name(cluster, "warm")
    cluster.kubectl("annotate", "node", first, f"{PULL_SECONDS}=600")
    other = next(n for n in node_names(cluster) if n != first)
    cluster.kubectl("annotate", "node", other, f"{PULL_SECONDS}=6")
    try:
        create(cluster, pod("cold", container("true"), nodeName=other))
        wait_for(
            "the node to accept the pod", lambda: "startTime" in get(cluster, "cold")["status"]
        )
        began = time.monotonic()
        status = get(cluster, "cold")["status"]
        assert "podIP" not in status
        (state,) = (c["state"] for c in status["containerStatuses"])
        assert state["waiting"]["reason"] == "ContainerCreating"
        assert "podIP" in ended(cluster, "cold")
        assert time.monotonic() - began > 4
        # The first node has the image.
        create(cluster, pod("again", container("true"), nodeName=first))
        ended(cluster, "again")
    finally:
        cluster.kubectl("annotate", "node", "--all", f"{PULL_SECONDS}-")


def get_name(cluster, name: str) -> str:
    """Run a pod and return the node that it ran on, which has the image from then on."""
    create(cluster, pod(name, container("true")))
    ended(cluster, name)
    node: str = get(cluster, name)["spec"]["nodeName"]
    return node


def node_names(cluster) -> list[str]:
    return cluster.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").split()
