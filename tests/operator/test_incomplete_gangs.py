"""Gangs of which not all workers ever ran: they wait, are released, and are never counted."""

from dataclasses import replace

import pytest

from finetune_operator.plan import restart
from tests.operator.worlds import (
    at,
    committed,
    ended,
    follow,
    look,
    policy,
    progressed,
    report,
    result,
    worker,
)

PULL = ("ImagePullBackOff", 'Back-off pulling image "trainer:1"')
MISSING_NAME = result(
    "Failed",
    reason="EnvironmentUnusable",
    message="a-1-0.a.default.svc has no address after 120 s",
)


def starting(*pods, now=20, **changes):
    """Return a job whose first gang has all its pods, and not all of them run."""
    job = policy(committed(), **changes) if changes else committed()
    return job.with_status(look(job, *pods, now=now).status)


def bound(index, attempt=1, **changes):
    """Return a worker that holds a node and whose container does not run."""
    return worker(index, attempt, **{"running": False, "phase": "Pending", "node": "n1"} | changes)


@pytest.mark.parametrize("code", [78, 79, 88])
def test_workers_that_end_because_a_peer_is_not_there_are_not_counted(code):
    missing = bound(1, waiting=PULL)
    job = starting(worker(0), missing)
    gang = [ended(worker(0), code, 130, MISSING_NAME), missing]
    _, job = follow(job, *gang, now=150)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.worker) == ("Released", "GangIncomplete", 1)
    assert not attempt.counted
    assert job.status.counted_restarts == job.status.restarts == 0
    assert "a-1-1" in attempt.message
    assert PULL[1] in attempt.message


def test_a_consequence_in_a_gang_that_never_was_complete_waits_for_its_cause():
    pods = [ended(worker(0), 88, 130), bound(1)]
    assert not look(starting(worker(0), bound(1)), *pods, now=131).commits
    failed = [pods[0], ended(worker(1), 1, 135)]
    attempt = look(starting(worker(0), bound(1)), *failed, now=136).status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.counted) == ("Failed", "Crashed", True)


@pytest.mark.parametrize(("code", "counted"), [(1, True), (87, True), (137, True), (64, False)])
def test_an_own_failure_ends_an_incomplete_gang_as_any_other(code, counted):
    job = starting(worker(0), bound(1, waiting=PULL))
    gang = [ended(worker(0), code, 30), bound(1, waiting=PULL)]
    attempt = look(job, *gang, now=31).status.attempts[-1]
    assert (attempt.outcome, attempt.worker, attempt.exit_code) == ("Failed", 0, code)
    assert attempt.counted is counted


def test_a_worker_that_starts_while_another_has_given_up_does_not_complete_the_gang():
    job = starting(worker(0), bound(1))
    pods = [ended(worker(0), 88, 130, MISSING_NAME), worker(1)]
    job = job.with_status(look(job, *pods, now=131).status)
    assert job.status.attempts[-1].running_time is None
    attempt = look(job, *pods, now=150).status.attempts[-1]
    assert (attempt.outcome, attempt.counted) == ("Released", False)


@pytest.mark.parametrize("code", [75, 137])
def test_a_worker_that_starts_after_another_was_stopped_does_not_complete_the_gang(code):
    job = starting(worker(0), bound(1))
    stopped = ended(worker(0, disrupted=True, deletion=at(330)), code, 40)
    attempt = look(job, stopped, worker(1), now=41).status.attempts[-1]
    assert (attempt.outcome, attempt.counted, attempt.running_time) == ("Released", False, None)


def test_steps_prove_that_a_gang_was_complete_although_that_was_not_observed():
    """The operator was away from the start of the gang to its end."""
    job = committed()
    saved = result("Stopped", reason="Stopped", **progressed(20, saved=20))
    gang = [ended(worker(0, disrupted=True), 75, 900, saved), ended(worker(1), 75, 900)]
    job = job.with_status(look(job, *gang, now=1000).status)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.counted) == ("Preempted", False)


@pytest.mark.parametrize(
    "waiting",
    [
        ("ErrImagePull", "no such image x"),
        PULL,
        ("CreateContainerConfigError", 'secret "s" not found'),
    ],
    ids=lambda waiting: waiting[0],
)
def test_a_half_gang_of_which_one_worker_cannot_start_is_released(waiting):
    stuck = bound(1, waiting=waiting)
    job = starting(worker(0), stuck)
    assert (job.status.phase, job.status.reason) == ("Starting", waiting[0])
    assert look(job, worker(0), stuck, now=609).requeue_after == 1
    decision, job = follow(job, worker(0), stuck, now=610)
    assert {d.name for d in decision.delete} == {"a-1-0", "a-1-1"}
    gone = [pod.vanished(at(612)) for pod in (worker(0), stuck)]
    _, job = follow(job, *gone, now=613)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.counted) == (
        "Released",
        "GangIncomplete",
        False,
    )
    assert "a-1-1" in attempt.message
    assert waiting[1] in attempt.message


def test_a_gang_of_which_no_worker_can_start_waits_for_its_deadline():
    """No worker waits for another one: the image is wrong, and a new gang would not help."""
    stuck = [bound(i, waiting=PULL) for i in (0, 1)]
    job = starting(*stuck)
    later = look(job, *stuck, now=5000)
    assert not later.commits
    assert later.status.reason == "ImagePullBackOff"
    _, job = follow(policy(job, start_deadline_seconds=600), *stuck, now=700)
    assert job.status.attempts[-1].stop_reason == "StartDeadlineExceeded"


def test_a_slow_pull_is_no_half_gang():
    job = starting(worker(0), bound(1))
    assert not look(job, worker(0), bound(1), now=5000).commits


def test_workers_that_wait_for_a_peer_do_not_hang():
    """They report no activity, however long the image of another worker takes."""
    job = starting(worker(0), bound(1))
    waits = report(stage="LoadingModel", activity_age_seconds=90_000)
    assert not look(job, worker(0), bound(1), now=90_020, report=waits).commits
    both = [worker(0), worker(1)]
    job = job.with_status(look(job, *both, now=90_030, report=waits).status)
    assert job.status.phase == "Running"
    # The newest report is from before the gang was complete.
    assert job.status.attempts[-1].stop_reason is None
    decision = look(job, *both, now=90_031, report=waits)
    assert not decision.commits
    late = look(job, *both, now=90_030 + 1900, report=waits)
    assert late.status.attempts[-1].stop_reason == "Hang"


REFUSED = ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present")


def refused(index=1, attempt=1, failure=REFUSED):
    changes = {"running": False, "phase": "Failed", "failure": failure, "node": "n1"}
    return worker(index, attempt, **changes)


@pytest.mark.parametrize(
    "failure",
    [
        REFUSED,
        ("OutOfcpu", "Node didn't have enough resource: cpu"),
        ("NodeAffinity", "Pod was rejected: predicate NodeAffinity failed"),
        ("Evicted", "the node was low on resource: ephemeral-storage"),
        ("NodeShutdown", "Pod was rejected as the node is shutting down."),
    ],
    ids=lambda failure: failure[0],
)
def test_a_node_that_refuses_a_pod_is_named_and_not_counted(failure):
    job = starting(worker(0), bound(1))
    job = job.with_status(look(job, worker(0), refused(failure=failure), now=30).status)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.worker) == ("Released", failure[0], 1)
    assert not attempt.counted
    for part in ("a-1-1", "n1", failure[1]):
        assert part in attempt.message


@pytest.mark.parametrize(
    "failure", [("PodFailed", "init container x ended with 1"), ("DeadlineExceeded", "too long")]
)
def test_a_pod_that_fails_by_its_own_template_is_counted(failure):
    job = starting(worker(0), bound(1))
    attempt = look(job, worker(0), refused(failure=failure), now=30).status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.counted) == ("Failed", failure[0], True)


def test_refusals_wait_longer_each_time_and_never_fail_the_job():
    job, waits = starting(worker(0), bound(1)), []
    now = 30.0
    for number in range(1, 40):
        gang = [worker(0, number), refused(1, number)]
        job = job.with_status(look(job, *gang, now=now).status)
        assert job.status.attempt == number
        waits.append((job.status.next_attempt_time - at(now)).total_seconds())
        over = [ended(worker(0, number), 75, now), refused(1, number)]
        now += 500
        _, job = follow(job, *over, now=now)
    assert waits[:5] == [30, 60, 120, 240, 300]
    assert set(waits[5:]) == {300}
    assert job.status.counted_restarts == job.status.restarts == 0


def test_a_gang_with_a_worker_on_a_dead_node_ends_at_once():
    """The pod is deleted after its tolerations, and its node never confirms it."""
    dead = bound(1, node="n7")
    job = starting(worker(0), dead)
    dying = replace(dead, deletion=at(70), disrupted=True)
    job = job.with_status(look(job, worker(0), dying, now=41).status)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.counted) == ("Released", "WorkerLost", False)
    assert "a-1-1 on node n7" in attempt.message
    # The other worker is charged up to the end of the attempt, and is deleted.
    assert attempt.device_seconds == 4 * 2 * 31
    decision = look(job, worker(0), dying, now=41)
    assert [(d.name, d.grace) for d in decision.delete] == [("a-1-0", 10)]
    # No gang begins while the pod on the dead node might still run.
    freed = ended(worker(0), 75, 45)
    waits = look(job, freed, dying, now=100)
    assert not waits.commits
    assert "a-1-1 on node n7" in waits.status.message
    _, job = follow(job, freed, dying, now=131)
    assert (job.status.attempt, job.status.counted_restarts, job.status.restarts) == (2, 0, 0)


def test_a_running_worker_that_is_asked_to_stop_ends_an_incomplete_gang():
    """It has nothing to save, and the gang cannot become complete any more."""
    job = starting(worker(0), bound(1))
    asked = worker(0, deletion=at(330), disrupted=True)
    attempt = look(job, asked, bound(1), now=30).status.attempts[-1]
    assert (attempt.outcome, attempt.counted) == ("Released", False)


def test_a_pod_that_vanishes_before_all_workers_ran_is_not_counted():
    job = starting(worker(0), bound(1))
    attempt = look(job, worker(0), bound(1).vanished(at(30)), now=31).status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.counted) == ("Released", "WorkerLost", False)


def test_one_outage_counts_once():
    job = starting(worker(0), worker(1))
    assert job.status.attempts[-1].running_time
    lost = worker(1, deletion=at(40), node="n7")
    _, job = follow(job, ended(worker(0), 88, 60), lost, now=101)
    assert (job.status.attempts[-1].reason, job.status.counted_restarts) == ("WorkerLost", 1)
    _, job = follow(job, ended(worker(0), 88, 60), lost, now=200)
    assert job.status.attempt == 2
    dying = bound(1, 2, node="n7", deletion=at(260), disrupted=True)
    job = job.with_status(look(job, worker(0, 2), bound(1, 2, node="n7"), now=210).status)
    job = job.with_status(look(job, worker(0, 2), dying, now=230).status)
    assert job.status.attempts[-1].outcome == "Released"
    assert job.status.counted_restarts == 1


def test_the_delays_of_the_table():
    assert [restart.backoff_seconds(10, n) for n in (1, 2, 3, 9)] == [10, 20, 40, 300]
