"""Deadlines and incomplete gangs: when a gang is stopped, and what follows."""

from dataclasses import replace

import pytest

from finetune_operator.plan.observe import Refusal
from tests.operator.worlds import (
    at,
    committed,
    condition,
    ended,
    follow,
    look,
    make_job,
    pending,
    policy,
    prepare_pod,
    progressed,
    report,
    result,
    running,
    worker,
)


def with_pods(job, now=10):
    """Return the job once all its pods were created."""
    return job.with_status(look(job, pending(0), pending(1), now=now).status)


def test_the_start_deadline_counts_from_when_all_pods_exist():
    job = policy(with_pods(committed(), now=10), start_deadline_seconds=60)
    stuck = [pending(i, unschedulable="0/3 nodes are available") for i in (0, 1)]
    early = look(job, *stuck, now=69)
    assert early.status.phase == "Queued"
    assert early.requeue_after == 1
    decision, job = follow(job, *stuck, now=70)
    assert [d.grace for d in decision.delete] == [10, 10]
    gone = [pod.vanished(at(70)) for pod in stuck]
    _, job = follow(job, *gone, now=71)
    assert (job.status.phase, job.status.reason) == ("Failed", "StartDeadlineExceeded")
    assert "0/3 nodes are available" in job.status.message
    assert job.status.usage.device_seconds == 0
    assert not job.status.usage.estimated


def test_a_gated_gang_is_queued_and_has_no_deadline():
    job = policy(committed(), start_deadline_seconds=60)
    gated = [pending(i, gates=("kueue.x-k8s.io/admission",)) for i in (0, 1)]
    job = job.with_status(look(job, *gated, now=10).status)
    later = look(job, *gated, now=5000)
    assert (later.status.phase, later.status.reason) == ("Queued", "SchedulingGated")
    assert "kueue.x-k8s.io/admission" in later.status.message
    assert not later.commits


def test_a_prepare_pod_that_does_not_run_within_the_start_deadline_fails_the_job():
    job = policy(make_job(), start_deadline_seconds=60)
    stuck = prepare_pod(job, created=at(0), waiting=("ImagePullBackOff", "no such image"))
    assert look(job, stuck, now=59).requeue_after == 1
    late = look(job, stuck, now=61)
    assert (late.status.phase, late.status.reason) == ("Failed", "StartDeadlineExceeded")
    assert "no such image" in late.status.message
    (delete,) = look(job.with_status(late.status), stuck, now=62).delete
    assert delete.name == "a-prepare"


def test_a_gang_saves_at_the_active_deadline_which_counts_running_time_only():
    job = policy(running(now=1000), active_deadline_seconds=100)
    assert not look(job, worker(0), worker(1), now=1099).commits
    decision, job = follow(job, worker(0), worker(1), now=1100)
    assert [d.grace for d in decision.delete] == [None, None]
    stopped = result("Stopped", reason="Stopped", **progressed(30, saved=30))
    gang = [ended(worker(i, deletion=at(1400)), 75, 1105, stopped) for i in (0, 1)]
    _, job = follow(job, *gang, now=1106)
    assert (job.status.phase, job.status.reason) == ("Failed", "ActiveDeadlineExceeded")
    assert job.status.attempts[0].active_seconds == 105


def test_the_active_deadline_counts_all_attempts():
    job = policy(running(now=20), active_deadline_seconds=100)
    crash = [ended(worker(0), 1, 80, result("Failed", reason="Crashed")), ended(worker(1), 88, 80)]
    job = job.with_status(look(job, *crash, now=81).status)
    assert job.status.attempts[0].active_seconds == 60
    _, job = follow(job, *crash, now=200)
    job = running(job, now=300)
    second = [worker(0, 2), worker(1, 2)]
    assert not look(job, *second, now=339).commits
    assert look(job, *second, now=340).commits


def test_the_active_deadline_does_not_stop_an_export():
    job = policy(running(now=20), active_deadline_seconds=100)
    exporting = [worker(0), ended(worker(1), 0, 100)]
    assert not look(job, *exporting, now=500).commits


@pytest.mark.parametrize("source", ["the report", "the status, after a restart of the operator"])
def test_the_active_deadline_does_not_stop_an_export_of_a_single_worker(source):
    job = committed(workers={"replicas": 1, "devicesPerWorker": 4})
    job = policy(job.with_status(look(job, worker(0), now=20).status), active_deadline_seconds=100)
    exports = report(stage="Exporting", **progressed(100, saved=100))
    job = job.with_status(look(job, worker(0), now=110, report=exports).status)
    again = exports if source == "the report" else None
    assert not look(job, worker(0), now=500, report=again).commits
    trains = report(stage="Training", **progressed(50))
    assert look(job, worker(0), now=500, report=trains).commits


def test_the_start_deadline_of_a_prepare_pod_counts_from_the_removal_of_its_gates():
    job = policy(make_job(), start_deadline_seconds=600)
    gated = prepare_pod(job, created=at(0), gates=("kueue.x-k8s.io/admission",))
    job = job.with_status(look(job, gated, now=4000).status)
    assert job.status.reason == "SchedulingGated"
    free = replace(gated, gates=(), unschedulable="0/3 nodes are available")
    admitted = look(job, free, now=5000)
    assert (admitted.status.phase, admitted.requeue_after) == ("Preparing", 600)
    job = job.with_status(admitted.status)
    assert look(job, free, now=5599).status.phase == "Preparing"
    late = look(job, free, now=5601).status
    assert (late.phase, late.reason) == ("Failed", "StartDeadlineExceeded")


@pytest.mark.parametrize(
    ("age", "silent", "stopped"),
    [(1800, False, False), (1860, False, False), (1861, False, True), (9999, True, False)],
    ids=["in time", "left to the supervisor", "supervisor does not act", "an old report"],
)
def test_the_operator_stops_a_hang_only_by_a_recent_report(age, silent, stopped):
    decision = look(
        running(),
        worker(0),
        worker(1),
        now=20_000,
        report=report(activity_age_seconds=age),
        silent=silent,
    )
    assert (decision.status.attempts[-1].stop_reason == "Hang") is stopped


def test_a_gang_without_activity_is_planned_again_at_its_deadline():
    """A report that only gets older triggers no reconciliation."""
    job = policy(running(), progress_deadline_seconds=100)
    pods = (worker(0), worker(1))
    assert look(job, *pods, now=240, report=report(activity_age_seconds=30.0)).requeue_after == 131
    assert (
        look(job, *pods, now=371, report=report(activity_age_seconds=161.0))
        .status.attempts[-1]
        .stop_reason
        == "Hang"
    )
    assert look(job, *pods, now=371, report=report(activity_age_seconds=4.0)).requeue_after == 157


def test_workers_that_all_run_and_do_not_find_each_other_are_stopped():
    """Their supervisors do not know that all of them run, and see no hang."""
    job, pods = policy(running(now=20), progress_deadline_seconds=100), (worker(0), worker(1))
    waits = report(stage="LoadingModel", waiting_for="worker 1 of 2 to join (numbered from 0)")
    early = look(job, *pods, now=60, report=waits)
    assert early.status.message == "worker 0 waits for worker 1 of 2 to join (numbered from 0)"
    assert look(job, *pods, now=150, report=waits).requeue_after == 31
    late = look(job, *pods, now=181, report=waits).status
    assert late.attempts[-1].stop_reason == "Hang"
    assert "worker 0 still waits for worker 1 of 2 to join" in late.message
    assert "open port 29500 between the pods of the job" in late.message
    unknown = look(job, *pods, now=181, report=waits, silent=True).status
    assert unknown.attempts[-1].stop_reason is None


def test_a_hang_is_a_counted_restart():
    _, job = follow(running(), worker(0), worker(1), now=6040, most=1)
    asked = look(job, worker(0), worker(1), now=6041, report=report(activity_age_seconds=5000))
    job = job.with_status(asked.status)
    deletions = look(job, worker(0), worker(1), now=6042).delete
    assert [d.grace for d in deletions] == [10, 10]
    gang = [ended(worker(i, deletion=at(6052)), 137, 6045) for i in (0, 1)]
    _, job = follow(job, *gang, now=6046)
    assert (job.status.phase, job.status.reason) == ("Restarting", "Hang")
    assert job.status.counted_restarts == 1


def incomplete_gang():
    return [worker(0, running=False, phase="Pending"), pending(1, unschedulable="no room")]


def test_an_incomplete_gang_is_released_and_starts_again_uncounted():
    job = committed()
    job = job.with_status(look(job, *incomplete_gang(), now=20).status)
    assert job.status.phase == "Starting"
    assert "1 of 2 workers have a node" in job.status.message
    assert look(job, *incomplete_gang(), now=609).requeue_after == 1
    decision, job = follow(job, *incomplete_gang(), now=610)
    assert {d.name for d in decision.delete} == {"a-1-0", "a-1-1"}
    gone = [replace(pod, gone=True, end_seen=at(612)) for pod in incomplete_gang()]
    _, job = follow(job, *gone, now=613)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.counted) == (
        "Released",
        "GangIncomplete",
        False,
    )
    assert job.status.phase == "Restarting"
    assert 5 <= (job.status.next_attempt_time - at(613)).total_seconds() <= 15
    assert attempt.device_seconds == 4 * 602  # the worker that held a node is charged
    _, job = follow(job, *gone, now=700)
    assert (job.status.attempt, job.status.restarts, job.status.counted_restarts) == (2, 0, 0)


def test_a_gang_that_a_quota_keeps_incomplete_is_released():
    job, text = committed(), 'pods "a-1-1" is forbidden: exceeded quota: gpus'
    one = worker(0, running=False, phase="Pending")
    refusal = Refusal("Forbidden", text)
    job = job.with_status(look(job, one, now=20, refusal=refusal).status)
    assert (job.status.phase, job.status.reason) == ("Starting", "Forbidden")
    assert look(job, one, now=609).create  # it is tried again until then
    decision, job = follow(job, one, now=610)
    assert [d.name for d in decision.delete] == ["a-1-0"]
    assert text in job.status.message
    assert "1 of 2 workers held a node" in job.status.message
    _, job = follow(job, replace(one, gone=True, end_seen=at(612)), now=613)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason) == ("Released", "GangIncomplete")
    assert attempt.device_seconds == 4 * 602


def test_gangs_that_are_released_repeatedly_wait_longer_and_never_fail():
    job, waits = committed(), []
    for number in range(1, 120):
        start = number * 10_000
        pods = [
            worker(0, number, running=False, phase="Pending", scheduled=at(start)),
            worker(
                1, number, running=False, phase="Pending", scheduled=None, unschedulable="no room"
            ),
        ]
        job = job.with_status(look(job, *pods, now=start).status)
        _, job = follow(job, *pods, now=start + 700)
        gone = [replace(pod, gone=True, end_seen=at(start + 701)) for pod in pods]
        _, job = follow(job, *gone, now=start + 702)
        waits.append((job.status.next_attempt_time - at(start + 702)).total_seconds())
        _, job = follow(job, now=start + 2000)
        assert job.status.attempt == number + 1
    assert min(waits[10:]) >= 300 * 0.5
    assert max(waits) <= 300 * 1.5


def test_a_volume_that_is_not_bound_has_its_own_reason():
    text = "pod has unbound immediate PersistentVolumeClaims. preemption: 0/1 nodes"
    stuck = [pending(i, unschedulable=text) for i in (0, 1)]
    status = look(with_pods(committed()), *stuck, now=30).status
    assert (status.phase, status.reason) == ("Queued", "VolumeNotBound")
    assert condition(status, "WorkersReady").reason == "VolumeNotBound"
