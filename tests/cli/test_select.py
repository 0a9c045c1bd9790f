"""Which pod's log is meant."""

import pytest

from finetune_cli.errors import CliError
from finetune_cli.select import Wanted, pick, state


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
    ("wanted", "status", "name"),
    [
        (Wanted(), STATUS, "a-2-0"),
        (Wanted(worker=1), STATUS, "a-2-1"),
        (Wanted(attempt=1), STATUS, "a-1-0"),
        (Wanted(prepare=True), STATUS, "a-prepare"),
        (Wanted(), {}, "a-prepare"),
    ],
)
def test_the_newest_attempt_and_worker_0_are_meant_by_default(wanted, status, name):
    assert pick(PODS, wanted, status, "a")["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(worker=2), "allowed are 0 to 1"),
        (Wanted(attempt=3), "no attempt 3; the newest is 2"),
        (Wanted(attempt=1, worker=1), "is gone; attempts with pods: 1, 2"),
    ],
)
def test_what_cannot_be_shown_is_said_in_words(wanted, words):
    with pytest.raises(CliError, match=words):
        pick(PODS, wanted, STATUS, "a")


def test_a_pod_that_will_come_is_waited_for():
    assert pick(PODS[:2], Wanted(), STATUS, "a") is None


@pytest.mark.parametrize(
    ("container", "text"),
    [
        ({"running": {}}, "running"),
        ({"terminated": {}}, "ended"),
        ({"waiting": {"reason": "ImagePullBackOff"}}, "waiting: ImagePullBackOff"),
    ],
)
def test_states(container, text):
    found = {"status": {"containerStatuses": [{"name": "trainer", "state": container}]}}
    assert state(found) == text
