"""The choice of the pod whose log is printed."""

import pytest

from finetune_cli.errors import CliError
from finetune_cli.select import Selection, pick_pod, state


def pod(name: str, **labels):
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {f"finetune.dev/{k.replace('_', '-')}": v for k, v in labels.items()},
        }
    }


PODS = [
    pod("a-prepare", role="prepare"),
    pod("a-1-0", role="worker", attempt="1", worker_index="0"),
    pod("a-2-0", role="worker", attempt="2", worker_index="0"),
    pod("a-2-1", role="worker", attempt="2", worker_index="1"),
]
STATUS = {"attempt": 2, "workers": {"desired": 2}, "phase": "Running"}


@pytest.mark.parametrize(
    ("selection", "status", "name"),
    [
        (Selection(), STATUS, "a-2-0"),
        (Selection(worker=1), STATUS, "a-2-1"),
        (Selection(attempt=1), STATUS, "a-1-0"),
        (Selection(prepare=True), STATUS, "a-prepare"),
        (Selection(), {}, "a-prepare"),
    ],
)
def test_the_default_is_worker_0_of_the_newest_attempt(selection, status, name):
    assert pick_pod(PODS, selection, status, "a")["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(worker=2), "allowed are 0 to 1"),
        (Selection(attempt=3), "no attempt 3; the newest is 2"),
        (Selection(attempt=1, worker=1), "is gone; attempts with pods: 1, 2"),
    ],
)
def test_a_pod_that_cannot_exist_is_an_error(selection, message):
    with pytest.raises(CliError, match=message):
        pick_pod(PODS, selection, STATUS, "a")


def test_a_pod_that_does_not_exist_yet_is_not_an_error():
    assert pick_pod(PODS[:2], Selection(), STATUS, "a") is None


@pytest.mark.parametrize(
    ("container", "text"),
    [
        ({"running": {}}, "running"),
        ({"terminated": {}}, "ended"),
        ({"waiting": {"reason": "ImagePullBackOff"}}, "waiting: ImagePullBackOff"),
    ],
)
def test_state_of_the_trainer_container(container, text):
    found = {"status": {"containerStatuses": [{"name": "trainer", "state": container}]}}
    assert state(found) == text
