"""The prepare pod that is evicted, refused or fails: what is counted, the back-off, the message."""

from dataclasses import replace

import pytest

from finetune_operator.plan import events
from tests.operator.worlds import at, ended, follow, look, make_job, prepare_pod, suspended

EVICTED = ("Evicted", "the node was low on resource: ephemeral-storage")
REFUSED = ("UnexpectedAdmissionError", "Allocate failed")


def made(job, **changes):
    """Return the prepare pod that is created for a job after those that have ended."""
    tries = job.status.prepare_failures + job.status.prepare_interruptions
    return prepare_pod(retry=tries, **changes)


def interrupted(kind, job, now):
    """Return the prepare pod of a job after an interruption that is not its own fault."""
    pod = made(job, uid=f"p-{now}", node="n1")
    changes = {
        "evicted by the kubelet": {"phase": "Failed", "failure": EVICTED},
        "refused by the node": {"phase": "Failed", "failure": REFUSED},
        "drained": {"deletion": at(now + 30), "disrupted": True, "running": True},
        "deleted by force": {"gone": True, "end_seen": at(now)},
    }
    if kind in changes:
        return replace(pod, **changes[kind])
    if kind == "drained and stopped":
        return ended(replace(pod, disrupted=True), 75, now)
    return ended(pod, 255, now, reason="Unknown")


KINDS = (
    *("evicted by the kubelet", "refused by the node", "drained", "drained and stopped"),
    *("deleted by force", "its node was restarted"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepare_pod_that_is_interrupted_again_and_again_waits_longer_and_never_fails(kind):
    job, now, waits = make_job(), 0, []
    for count in range(1, 20):
        assert look(job, now=now).create
        pod = interrupted(kind, job, now)
        decision, job = follow(job, pod, now=now)
        assert not decision.create
        assert job.status.phase == "Preparing"
        assert (job.status.prepare_interruptions, job.status.prepare_failures) == (count, 0)
        waits.append((job.status.next_attempt_time - at(now)).total_seconds())
        gone = pod.vanished(at(now))
        assert not look(job, gone, now=now + 1).acts
        now += 400
    assert waits[:6] == [10, 20, 40, 80, 160, 300]
    assert set(waits[6:]) == {300}


def test_an_interruption_is_counted_once_while_its_pod_is_being_deleted():
    job = make_job()
    pod = interrupted("drained", job, 0)
    for now in (1, 2, 40, 41):
        _, job = follow(job, pod, now=now)
    assert job.status.prepare_interruptions == 1


def test_an_interruption_keeps_its_cause_in_the_message_and_has_an_event():
    job = make_job()
    before = job.status
    pod = interrupted("evicted by the kubelet", job, 0)
    first = look(job, pod, now=0)
    (event,) = [e for e in events.between(before, first.status) if e.kind == "Warning"]
    assert (event.reason, EVICTED[1] in event.message) == ("PrepareFailed", True)
    job = job.with_status(first.status)
    terminating = look(job, replace(pod, deletion=at(10)), now=5).status
    assert EVICTED[1] in terminating.message
    for pods in ((pod,), (), (pod.vanished(at(1)),)):
        status = look(job, *pods, now=5).status
        assert status.reason == "BackOff"
        assert f"pod a-prepare on node n1: {EVICTED[1]}" in status.message
        assert "00:00:10 UTC" in status.message


def test_the_operators_own_deletion_is_no_interruption():
    edited = make_job(model={"source": "pvc://w/other"})
    _, job = follow(edited, prepare_pod(make_job(), deletion=at(10)), now=1)
    assert job.status.prepare_interruptions == 0
    decision = look(edited, prepare_pod(make_job()).vanished(at(5)), now=6)
    assert decision.create


def test_a_suspension_is_no_interruption_that_delays_the_job():
    job = suspended(make_job())
    pod = prepare_pod(make_job(), running=True)
    _, job = follow(job, pod, now=5)
    gone = pod.vanished(at(6))
    _, job = follow(job, gone, now=7)
    assert job.status.phase == "Suspended"
    job = make_job(job.status)
    decision = look(job, gone, now=8)
    assert decision.create
    again = made(job, uid="again", running=True)
    assert not look(job.with_status(decision.status), gone, again, now=9).acts


def test_own_failures_are_still_counted_and_end_the_job():
    job, now = make_job(), 0
    for _ in range(4):
        pod = made(job, uid=f"p-{now}", phase="Failed", failure=("PodFailed", "init x: 1"))
        _, job = follow(job, pod, now=now)
        now += 400
    assert (job.status.phase, job.status.reason) == ("Failed", "PodFailed")


def test_the_message_keeps_its_cause_while_preparation_backs_off():
    job = make_job()
    pod = ended(prepare_pod(job), 137, 5, reason="OOMKilled")
    job = job.with_status(look(job, pod, now=6).status)
    cause = job.status.prepare_problem
    assert "memory limit" in cause
    for pods in ((pod,), ()):
        status = look(job, *pods, now=8).status
        assert status.message.startswith(cause)
        assert "preparing failed once" in status.message
        assert "00:00:16 UTC" in status.message
    second = made(job, uid="p2", running=True)
    assert look(job, second, now=20).status.message == "checking the model and preparing the data"
