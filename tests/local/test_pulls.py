"""A node that takes time to pull an image; tests/e2e/test_cold_node.py has one in a cluster."""

from finetune_local.node.pulls import PULL_SECONDS, Pulls


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
