"""Pods that are bound and do not run: their events say why, and are read rarely."""

import pytest

from finetune_api.base import Object, format_time
from finetune_client.errors import ApiError
from finetune_operator.plan.observe import Pod
from finetune_operator.plan.slow_pods import Notice, seconds_until_slow, slow_pods, with_notices
from finetune_operator.pod_events import PodEvents, notice_of
from tests.operator import podstatus
from tests.operator.worlds import (
    at,
    committed,
    ended,
    follow,
    look,
    make_job,
    pending,
    policy,
    prepare_pod,
    seen,
    worker,
)

MOUNT = 'MountVolume.SetUp failed for volume "workspace": mount failed: exit status 32'


def event(reason: str, message: str, when: float, kind: str = "Warning", **more: object) -> Object:
    return {
        "metadata": {"creationTimestamp": format_time(at(0))},
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": format_time(at(when)),
        **more,
    }


def bound(index: int = 0, **changes: object) -> Pod:
    return pending(index, **{"scheduled": at(10), "node": f"node{index}", **changes})


# Which event explains it

SCHEDULED = event("Scheduled", "Successfully assigned a-1-0 to node0", 10, "Normal")
NO_NODE = event("FailedScheduling", "0/3 nodes are available", 9)
EVENTS = {
    "nothing but its binding": ([SCHEDULED], None),
    "no node at first": ([NO_NODE, SCHEDULED], None),
    "a volume is not mounted": (
        [SCHEDULED, event("FailedMount", MOUNT, 20)],
        Notice("FailedMount", MOUNT),
    ),
    "a volume is attached to another node": (
        [
            event("FailedMount", "timed out waiting for the condition", 20),
            event("FailedAttachVolume", "Multi-Attach error for volume pvc-1", 30),
        ],
        Notice("FailedAttachVolume", "Multi-Attach error for volume pvc-1"),
    ),
    "the volume was attached at last": (
        [
            event("FailedAttachVolume", "Multi-Attach error for volume pvc-1", 20),
            event("SuccessfulAttachVolume", "AttachVolume.Attach succeeded", 30, "Normal"),
        ],
        Notice("", "AttachVolume.Attach succeeded"),
    ),
    "a large image": (
        [SCHEDULED, event("Pulling", 'Pulling image "trainer:1"', 12, "Normal")],
        Notice("Pulling", 'Pulling image "trainer:1" since 00:00:12 UTC'),
    ),
    "times of the newer API": (
        [
            event("FailedMount", "old", 20),
            event("FailedMount", MOUNT, 1, series={"lastObservedTime": format_time(at(40))}),
        ],
        Notice("FailedMount", MOUNT),
    ),
    "several lines": ([event("FailedMount", "a\nb\n", 20)], Notice("FailedMount", "a b")),
    "not an event at all": ([{"metadata": {}, "message": 3}], None),
}


@pytest.mark.parametrize(("events", "expected"), EVENTS.values(), ids=EVENTS)
def test_the_newest_event_explains_why_a_pod_does_not_run(events, expected):
    assert notice_of(events) == expected


# Which pods are slow

PODS = {
    "bound for longer": (bound(), True),
    "bound for a short time": (bound(scheduled=at(90)), False),
    "not bound": (pending(0), False),
    "runs": (worker(0), False),
    "has ended": (ended(worker(0), 1, 30), False),
    "its kubelet reports why it waits": (bound(waiting=("ErrImagePull", "no such image")), False),
    "is being deleted": (bound(deletion=at(400)), False),
    "is gone": (bound().vanished(), False),
    "on a node that does not answer": (bound(silent_since=at(50)), False),
}


@pytest.mark.parametrize(("pod", "slow"), PODS.values(), ids=PODS)
def test_a_pod_is_slow_if_it_is_bound_and_nothing_says_why_it_does_not_run(pod, slow):
    world = seen(committed(), pod, now=100)
    assert slow_pods(world) == ([pod] if slow else [])


def test_pods_of_older_attempts_and_of_finished_jobs_do_not_matter():
    old = bound(attempt=0)
    assert slow_pods(seen(committed(), old, now=100)) == []
    job = committed()
    job = job.with_status(job.status.replace(phase="Failed"))
    assert slow_pods(seen(job, bound(), now=100)) == []


def test_a_job_is_planned_again_when_a_pod_becomes_slow_and_while_it_is():
    assert seconds_until_slow([bound(scheduled=at(90))], at(100)) == 10
    assert seconds_until_slow([bound()], at(100)) == 30
    assert seconds_until_slow([worker(0), pending(1)], at(100)) is None
    first = look(committed(), bound(0), bound(1), now=12)
    assert first.requeue_after == 18
    alone = look(make_job(), prepare_pod(created=at(5), scheduled=at(10)), now=12)
    assert alone.requeue_after == 18


# What the status shows


def explained(pods: list[Pod], known: dict[str, Notice], job=None, now: float = 100):
    world = with_notices(seen(job or committed(), *pods, now=now), known)
    return look(world.job, *world.pods, now=now).status


def test_a_worker_whose_volume_is_not_mounted_is_named_with_node_and_reason():
    pods = [worker(0), bound(1)]
    status = explained(pods, {"uid-1-1": Notice("FailedMount", MOUNT)})
    assert (status.phase, status.reason) == ("Starting", "FailedMount")
    assert status.message == (
        f"a-1-1 is bound to node node1 since 00:00:10 UTC and does not run yet: {MOUNT}"
    )


def test_a_prepare_pod_whose_volume_is_not_mounted_is_named_with_node_and_reason():
    pod = prepare_pod(created=at(5), scheduled=at(10), node="n3")
    status = explained([pod], {pod.uid: Notice("FailedMount", MOUNT)}, make_job())
    assert (status.phase, status.reason) == ("Preparing", "FailedMount")
    assert "a-prepare is bound to node n3 since 00:00:10 UTC" in status.message


@pytest.mark.parametrize(
    ("sandbox", "text"),
    [
        (False, "its volumes are not mounted, or its network is not set up"),
        (True, "its image is being pulled, or an init container runs"),
        (None, "its node has not reported anything about it"),
    ],
)
def test_without_an_event_the_conditions_of_the_pod_say_how_far_it_is(sandbox, text):
    status = explained([worker(0), bound(1, sandbox=sandbox)], {})
    assert (status.phase, status.reason) == ("Starting", None)
    assert status.message.endswith(f"does not run yet: {text}")


def test_the_condition_of_the_sandbox_is_read_from_the_pod():
    item = {
        "metadata": {"name": "a-1-0", "uid": "u", "namespace": "default"},
        "spec": {},
        "status": {
            "phase": "Pending",
            "conditions": [
                podstatus.condition("PodReadyToStartContainers", "False", format_time(at(1)))
            ],
        },
    }
    assert Pod.of(item).sandbox is False


def test_the_start_deadline_says_which_volume_was_not_mounted():
    job = policy(committed(), start_deadline_seconds=60)
    job = job.with_status(look(job, bound(0), bound(1), now=10).status)
    world = with_notices(
        seen(job, bound(0), bound(1), now=80), {"uid-1-0": Notice("FailedMount", MOUNT)}
    )
    _, job = follow(job, *world.pods, now=80)
    assert MOUNT in job.status.attempts[-1].message


# Reading the events


class Server:
    """Answers requests for events, and counts them."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def get(self, path: str, **query: str) -> Object:
        self.asked.append((path, query))
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"items": self.answer}


async def test_events_are_read_rarely_by_the_uid_of_the_pod():
    server = Server([event("FailedMount", MOUNT, 20)])
    reader = PodEvents(server)
    for now in (100, 101, 129):
        await reader.read([bound()], at(now))
    assert server.asked == [
        (
            "/api/v1/namespaces/default/events",
            {"fieldSelector": "involvedObject.uid=uid-1-0", "limit": "50"},
        )
    ]
    assert reader.known == {"uid-1-0": Notice("FailedMount", MOUNT)}
    for now in (131, 132, 189, 191, 310, 312, 611, 613, 912, 914):
        await reader.read([bound()], at(now))
    assert len(server.asked) == 6  # at 100, 131, 191, 312, 611, 912


async def test_few_pods_of_a_gang_are_asked_for():
    server = Server([])
    await PodEvents(server).read([bound(i) for i in range(100)], at(100))
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "error", [ApiError(403, "Forbidden", "no right"), ConnectionRefusedError(), TimeoutError()]
)
async def test_a_job_goes_on_without_events_that_cannot_be_read(error, caplog):
    reader = PodEvents(Server(error))
    await reader.read([bound()], at(100))
    await reader.read([bound(1)], at(100))
    assert reader.known == {}
    assert caplog.text.count("events of pods cannot be read") == 1
