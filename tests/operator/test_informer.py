"""Which changes of a pod are processed at once, and which together with later ones."""

from typing import Any

import pytest

from finetune_api import names
from finetune_operator.informer import Pods
from tests.operator import podstatus

KEY = ("default", "a")


def pod(
    version: int, role: str = "worker", status: dict[str, Any] | None = None, **metadata: Any
) -> dict[str, Any]:
    labels = {
        names.LABEL_JOB_UID: "u",
        names.LABEL_JOB_NAME: "a",
        names.LABEL_ROLE: role,
        names.LABEL_ATTEMPT: "1",
    }
    name = "a-prepare" if role == "prepare" else "a-1-0"
    known = {"name": name, "namespace": "default", "uid": "p", "resourceVersion": str(version)}
    return {
        "metadata": {**known, "labels": labels, **metadata},
        "status": status or {"phase": "Pending"},
    }


class Cache:
    """A cache with a pending worker, and its notifications since."""

    def __init__(self) -> None:
        self.now: list[Any] = []
        self.soon: list[Any] = []
        self.pods = Pods(self.now.append, self.soon.append)
        self.pods.take(pod(1), notify=False)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "it runs": ({"status": podstatus.running()}, "soon"),
    "it failed": ({"status": podstatus.ended(1)}, "now"),
    "it succeeded": ({"status": podstatus.ended(0)}, "now"),
    "it was evicted": ({"status": {"phase": "Failed", "reason": "Evicted"}}, "now"),
    "it is being deleted": ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, "now"),
    "a prepare pod runs": ({"role": "prepare", "status": podstatus.running()}, "now"),
    "nothing relevant": ({}, ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_starting_workers_are_processed_together_and_other_changes_at_once(change):
    changes, when = CHANGES[change]
    cache = Cache()
    cache.pods.take(pod(2, **changes))
    assert (cache.now, cache.soon) == ([KEY] * (when == "now"), [KEY] * (when == "soon"))


def test_a_deletion_is_processed_at_once():
    cache = Cache()
    cache.pods.vanish("u", "p")
    assert (cache.now, cache.soon) == ([KEY], [])


def test_the_end_of_a_pod_whose_exact_end_is_awaited_is_kept():
    cache = Cache()
    cache.pods.replace([pod(2, status=podstatus.ended(137))], "default", "u", notify=False)
    cache.pods.vanish("u", "p")
    cache.pods.forget("u", before_attempt=2, awaited={(1, 0)})
    assert [kept.name for kept in cache.pods.of("u")] == ["a-1-0"]
    cache.pods.forget("u", before_attempt=2)
    assert not cache.pods.of("u")


def test_pods_read_while_reconciling_cause_no_notification():
    cache = Cache()
    cache.pods.replace([pod(2, status=podstatus.ended(1))], "default", "u", notify=False)
    assert (cache.now, cache.soon) == ([], [])
    assert cache.pods.of("u")[0].ended
    cache.pods.replace([], "default", "u", notify=False)
    assert cache.pods.of("u")[0].gone
    assert (cache.now, cache.soon) == ([], [])
