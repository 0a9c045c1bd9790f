"""Gangs that all ran and have not finished a step: the end of a lost worker is not awaited."""

from dataclasses import replace

import pytest

from tests.operator.worlds import (
    at,
    ended,
    follow,
    look,
    progressed,
    report,
    running,
    worker,
)

LOADS = report(stage="LoadingModel")


def on_dead_node(index=1, attempt=1, **changes):
    """Return a worker that the taint eviction controller has deleted from a silent node."""
    dead = {"node": f"n{index}", "silent_since": at(70), "deletion": at(140), "disrupted": True}
    return worker(index, attempt, **dead | changes)


def test_a_gang_that_loads_its_model_ends_when_a_worker_is_lost_with_its_node():
    job, lost = running(), on_dead_node()
    job = job.with_status(look(job, worker(0), lost, now=110, report=LOADS).status)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.node) == ("Failed", "WorkerLost", "n1")
    assert attempt.message == (
        "worker 1 was lost: its pod a-1-1 is on node n1, which does not answer since 00:01:10 UTC"
    )
    decision = look(job, worker(0), lost, now=110, report=LOADS)
    assert [(d.name, d.grace) for d in decision.delete] == [("a-1-0", 10)]
    assert "a-1-1 on node n1" in decision.status.message


def test_the_next_attempt_waits_until_the_lost_pod_must_have_ended_and_the_outage_counts_once():
    job, lost, freed = running(), on_dead_node(), ended(worker(0), 75, 112)
    _, job = follow(job, worker(0), lost, now=110, report=LOADS)
    for now in (120, 199):
        decision = look(job, freed, lost, now=now, report=LOADS)
        assert not decision.commits
        assert "attempt 2 starts at 00:03:20 UTC at the latest" in decision.status.message
        job = job.with_status(decision.status)
    # Its devices are held until then.
    assert job.status.attempts[-1].device_seconds == 4 * (102 + 189)
    _, job = follow(job, freed, lost, now=201)
    first = job.status.attempts[0]
    assert (job.status.attempt, job.status.counted_restarts) == (2, 1)
    assert (first.device_seconds, first.estimated, first.lost_workers) == (4 * 293, True, [1])
    # The scheduler still takes the node for a good one.
    bound = on_dead_node(1, 2, running=False, phase="Pending", node="n1", silent_since=None)
    _, job = follow(job, worker(0, 2), bound, freed, lost, now=230)
    assert job.status.attempts[-1].outcome == "Released"
    assert job.status.counted_restarts == 1


def test_a_gang_that_loads_its_model_ends_when_a_worker_is_deleted():
    asked = worker(1, node="n1", deletion=at(400), disrupted=True)
    status = look(running(), worker(0), asked, now=100, report=LOADS).status
    attempt = status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.counted) == ("Preempted", "Preempted", True)
    assert (attempt.worker, attempt.node) == (1, "n1")
    assert attempt.message == (
        "worker 1: its pod a-1-1 on node n1 was asked to stop before the first step "
        "(counted, because it finished no new step)"
    )


def test_a_gang_that_loads_its_model_ends_when_worker_0_is_lost():
    """Its report is the last one that arrived before its node died."""
    gang = (on_dead_node(0), worker(1))
    for silent in (True, False):
        status = look(running(), *gang, now=110, report=LOADS, silent=silent).status
        assert (status.attempts[-1].reason, status.attempts[-1].node) == ("WorkerLost", "n0")


def test_peers_that_have_ended_do_not_hide_the_lost_worker():
    gang = (ended(worker(0), 88, 108, "Connection closed by peer"), on_dead_node())
    attempt = look(running(), *gang, now=110, report=LOADS).status.attempts[-1]
    assert (attempt.reason, attempt.worker, attempt.node) == ("WorkerLost", 1, "n1")
    assert attempt.message.endswith("another worker reported: Connection closed by peer")


def test_a_crash_is_the_cause_even_if_another_worker_is_asked_to_stop():
    gang = (ended(worker(0), 1, 108, "boom"), on_dead_node())
    attempt = look(running(), *gang, now=110, report=LOADS).status.attempts[-1]
    assert (attempt.reason, attempt.worker) == ("Crashed", 0)


UNPROVED = {
    "a step is reported": {"report": report(**progressed(1))},
    "no report has arrived yet": {},
    "reports have stopped to arrive": {"report": LOADS, "silent": True},
}


@pytest.mark.parametrize("facts", UNPROVED.values(), ids=UNPROVED)
@pytest.mark.parametrize("lost", [False, True])
def test_a_gang_that_may_have_something_to_save_is_waited_for(facts, lost):
    asked = on_dead_node() if lost else replace(on_dead_node(), silent_since=None)
    decision = look(running(), worker(0), asked, now=110, **facts)
    assert not decision.commits
    assert not decision.delete
    assert "a-1-1 on node n1" in decision.status.message


def test_a_step_that_was_reported_before_is_remembered():
    job = running()
    job = job.with_status(
        look(job, worker(0), worker(1), now=60, report=report(**progressed(1))).status
    )
    assert not look(job, worker(0), on_dead_node(), now=110, report=LOADS).commits


def test_a_node_that_is_silent_for_a_moment_ends_nothing():
    silent = on_dead_node(deletion=None, disrupted=False)
    decision = look(running(), worker(0), silent, now=110, report=LOADS)
    assert not decision.commits
    assert decision.status.reason == "NodeNotReady"
    assert "worker 1 is on node n1, which does not answer" in decision.status.message
