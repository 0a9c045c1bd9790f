"""Which news of a pod is looked at now, and which together with what follows."""

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
    known = {"name": "a-1-0", "namespace": "default", "uid": "p", "resourceVersion": str(version)}
    return {
        "metadata": {**known, "labels": labels, **metadata},
        "status": status or {"phase": "Pending"},
    }


class Told:
    """A cache that knows a pending worker, and what it told since."""

    def __init__(self) -> None:
        self.now: list[Any] = []
        self.soon: list[Any] = []
        self.pods = Pods(self.now.append, self.soon.append)
        self.pods.take(pod(1), tell=False)


NEWS: dict[str, tuple[dict[str, Any], str]] = {
    "it runs": ({"status": podstatus.running()}, "soon"),
    "it failed": ({"status": podstatus.ended(1)}, "now"),
    "it succeeded": ({"status": podstatus.ended(0)}, "now"),
    "it was evicted": ({"status": {"phase": "Failed", "reason": "Evicted"}}, "now"),
    "it is to go": ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, "now"),
    "a prepare pod runs": ({"role": "prepare", "status": podstatus.running()}, "now"),
    "nothing that matters": ({}, ""),
}


@pytest.mark.parametrize("news", NEWS)
def test_what_a_gang_tells_by_the_dozen_is_looked_at_together(news):
    changes, when = NEWS[news]
    told = Told()
    told.pods.take(pod(2, **changes))
    assert (told.now, told.soon) == ([KEY] * (when == "now"), [KEY] * (when == "soon"))


def test_a_pod_that_is_gone_is_told_now():
    told = Told()
    told.pods.vanish("u", "p")
    assert (told.now, told.soon) == ([KEY], [])


def test_what_a_look_read_itself_is_no_news():
    told = Told()
    told.pods.replace([pod(2, status=podstatus.ended(1))], "default", "u", tell=False)
    assert (told.now, told.soon) == ([], [])
    assert told.pods.of("u")[0].ended
    told.pods.replace([], "default", "u", tell=False)
    assert told.pods.of("u")[0].gone
    assert (told.now, told.soon) == ([], [])
