"""Suspension: the gang saves, all pods are deleted, and a resumed job goes on at the next step."""

from dataclasses import replace

import pytest

from tests.operator.worlds import (
    at,
    committed,
    condition,
    ended,
    follow,
    look,
    make_job,
    prepare_pod,
    progressed,
    result,
    running,
    suspended,
    worker,
)


def test_the_suspension_is_written_before_a_pod_is_deleted():
    job = suspended(running())
    asked = look(job, worker(0), worker(1), now=40)
    assert asked.commits
    assert not asked.delete
    assert asked.status.attempts[-1].stop_reason == "Suspended"
    assert asked.status.phase == "Suspending"
    then = look(job.with_status(asked.status), worker(0), worker(1), now=41)
    assert [(d.name, d.grace) for d in then.delete] == [("a-1-0", None), ("a-1-1", None)]


def stopped(codes=(75, 75)):
    """Return a suspended job whose gang has ended and was saved at step 30, and the gang."""
    job = suspended(running())
    job = job.with_status(look(job, worker(0), worker(1), now=40).status)
    stopped = result("Stopped", reason="Stopped", **progressed(30, saved=30))
    gang = [
        ended(worker(i, deletion=at(340)), code, 50, stopped if i == 0 else "")
        for i, code in enumerate(codes)
    ]
    return job.with_status(look(job, *gang, now=51).status), gang


def test_a_gang_that_saved_is_suspended_without_counting():
    job, _ = stopped()
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.counted) == ("Suspended", False)
    assert "everything is saved" in attempt.message
    assert job.status.counted_restarts == 0


def test_a_gang_that_could_not_save_its_last_steps_reports_how_many_are_redone():
    """Its grace period was too short for another save."""
    job = suspended(running())
    job = job.with_status(look(job, worker(0), worker(1), now=40).status)
    stopped = result("Stopped", reason="Stopped", **progressed(30, saved=20))
    gang = [ended(worker(i, deletion=at(340)), 75, 50, stopped) for i in (0, 1)]
    text = look(job, *gang, now=51).status.attempts[-1].message
    assert text.endswith("; it could save up to step 20 only, 10 steps are redone")
    preempted = look(running(), *gang, now=51).status.attempts[-1]
    assert (preempted.outcome, preempted.counted) == ("Preempted", False)
    assert "it could save up to step 20 only" in preempted.message


def test_a_gang_that_could_not_save_is_suspended_with_a_message():
    job, _ = stopped(codes=(75, 137))
    attempt = job.status.attempts[-1]
    assert attempt.outcome == "Suspended"
    assert "redone" in attempt.message


def test_suspended_is_true_only_when_no_pod_exists():
    job, gang = stopped()
    first = look(job, *gang, now=52)
    assert first.status.phase == "Suspending"
    assert condition(first.status, "Suspended").status == "False"
    left = [replace(pod, gone=True) for pod in gang]
    then = look(job.with_status(first.status), *left, now=53)
    assert then.status.phase == "Suspended"
    assert condition(then.status, "Suspended").status == "True"
    assert not then.create
    assert not then.delete
    assert "step 30" in then.status.message


def resting():
    job, gang = stopped()
    left = [replace(pod, gone=True) for pod in gang]
    return job.with_status(look(job, *left, now=53).status), left


def test_suspended_is_reported_only_after_a_live_read():
    """A watch that lags behind may not have the pod that was just created."""
    first = look(make_job(suspend=True))
    assert first.commits
    assert condition(first.status, "Suspended").status == "True"
    assert not look(make_job(first.status, suspend=True)).acts


def test_a_resumed_job_commits_the_next_attempt_which_is_not_a_restart():
    job, left = resting()
    job = replace(job, spec=job.spec.replace(suspend=False))
    decision = look(job, *left, now=500)
    assert decision.commits
    assert decision.status.attempt == 2
    assert decision.status.restarts == 0
    assert condition(decision.status, "Suspended").status == "False"


def test_workers_that_were_changed_during_a_suspension_change_the_gang_and_its_plan():
    job, left = resting()
    assert job.status.plan.global_batch_size == 8
    workers = job.spec.workers.replace(replicas=1, devices_per_worker=2)
    deepspeed = {"zeroStage": 3, "microBatchSize": 2}
    spec = type(job.spec).model_validate(
        job.spec.to_dict() | {"suspend": False, "deepspeed": deepspeed}
    )
    job = replace(job, spec=spec.replace(workers=workers))
    decision = look(job, *left, now=500)
    plan = decision.status.plan
    assert (plan.zero_stage, plan.micro_batch_size, plan.gradient_accumulation_steps) == (3, 2, 2)
    assert (plan.global_batch_size, plan.total_steps) == (
        job.status.plan.global_batch_size,
        job.status.plan.total_steps,
    )
    job = job.with_status(decision.status)
    names = [p["metadata"]["name"] for p in look(job, now=501).create]
    assert names == ["a", "a-2-0"]
    # The size of the new gang does not change the usage of the old one.
    assert decision.status.attempts[0].device_seconds == job.status.attempts[0].device_seconds > 0


def test_a_job_that_is_suspended_before_its_first_attempt_deletes_the_prepare_pod():
    job = suspended(make_job())
    pod = prepare_pod(running=True)
    first = look(job, pod)
    assert [d.name for d in first.delete] == ["a-prepare"]
    assert first.status.phase == "Suspending"
    then = look(job.with_status(first.status), replace(pod, gone=True))
    assert then.status.phase == "Suspended"
    assert not then.create


def test_a_job_that_is_suspended_between_commit_and_creation_creates_no_pod():
    job = suspended(committed())
    asked = look(job, now=9)
    assert asked.commits
    assert not asked.create
    closed = look(job.with_status(asked.status), now=10)
    assert closed.status.attempts[-1].outcome == "Suspended"
    rest = look(job.with_status(closed.status), now=11)
    assert rest.status.phase == "Suspended"


def test_a_gang_that_finishes_while_it_is_being_stopped_has_succeeded():
    job = suspended(running())
    job = job.with_status(look(job, worker(0), worker(1), now=40).status)
    gang = [ended(worker(i, deletion=at(340)), 0, 50, result()) for i in (0, 1)]
    closed = look(job, *gang, now=51)
    assert closed.status.attempts[-1].outcome == "Succeeded"


def test_a_permanent_failure_of_a_gang_that_is_being_stopped_fails_the_job():
    job = suspended(running())
    job = job.with_status(look(job, worker(0), worker(1), now=40).status)
    bad = ended(worker(0, deletion=at(340)), 65, 45, result("Failed", reason="BadData"))
    other = ended(worker(1, deletion=at(340)), 88, 46)
    closed = look(job, bad, other, now=51)
    assert look(job.with_status(closed.status), bad, other, now=52).status.phase == "Failed"


def test_a_pod_on_a_lost_node_keeps_the_job_suspending_and_is_named():
    job, gang = stopped()
    lost = replace(gang[1], ended=None, phase="Running", node="n7", deletion=at(60))
    waiting = look(job, gang[0], lost, now=500)
    assert waiting.status.phase == "Suspending"
    gone = look(job.with_status(waiting.status), replace(gang[0], gone=True), lost, now=501)
    assert "a-1-1 on node n7" in gone.status.message
    assert gone.requeue_after


def test_a_deletion_that_was_interrupted_is_requested_again():
    """The API server marks a pod that has ended, then removes it; a client may die in between."""
    job, gang = stopped()
    cut = [replace(gang[0], deletion=at(55)), replace(gang[1], gone=True)]
    assert look(job, *cut, now=55).delete == []  # the first request may still be processed
    assert [d.name for d in look(job, *cut, now=56).delete] == ["a-1-0"]
    runs = [worker(0, deletion=at(55)), cut[1]]
    assert look(job, *runs, now=56).delete == []  # its kubelet has not stopped it yet


def test_a_job_that_is_suspended_during_the_back_off_restarts_when_it_is_resumed():
    job = running()
    crash = [ended(worker(0), 1, 30, result("Failed", reason="Crashed")), ended(worker(1), 88, 31)]
    job = job.with_status(look(job, *crash, now=32).status)
    job = suspended(job)
    job = job.with_status(look(job, *crash, now=33).status)
    left = [replace(pod, gone=True) for pod in crash]
    job = job.with_status(look(job, *left, now=34).status)
    assert job.status.phase == "Suspended"
    job = replace(job, spec=job.spec.replace(suspend=False))
    assert look(job, *left, now=900).status.restarts == 1


@pytest.mark.parametrize(
    "counts",
    [{"counted_restarts": 3, "last_failure_step": 50}, {"restarts": 99}],
    ids=["maxRestarts was lowered", "the last possible attempt"],
)
def test_a_suspension_does_not_fail_a_job_whose_restarts_are_used_up(counts):
    job = running(committed(runPolicy={"maxRestarts": 2}))
    job = suspended(job.with_status(job.status.replace(**counts)))
    job = job.with_status(look(job, worker(0), worker(1), now=40).status)
    stopped = result("Stopped", reason="Stopped", **progressed(45, saved=45))
    gang = [ended(worker(i, deletion=at(340)), 75, 50, stopped) for i in (0, 1)]
    _, job = follow(job, *gang, now=51)
    _, job = follow(job, now=60)
    assert (job.status.phase, job.status.attempts[-1].outcome) == ("Suspended", "Suspended")


def test_a_preemption_with_a_checkpoint_does_not_fail_a_job_whose_restarts_are_used_up():
    job = running(committed(runPolicy={"maxRestarts": 2}))
    job = job.with_status(job.status.replace(counted_restarts=3, last_failure_step=50))
    stopped = result("Stopped", reason="Stopped", **progressed(45, saved=45))
    gang = [ended(worker(i, deletion=at(340)), 75, 50, stopped) for i in (0, 1)]
    _, job = follow(job, *gang, now=51)
    assert (job.status.phase, job.status.attempt) == ("Starting", 2)
