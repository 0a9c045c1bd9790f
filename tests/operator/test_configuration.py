"""All workers of an attempt have one configuration, whatever is edited while they are created."""

from dataclasses import replace

from finetune_operator.plan import configuration
from finetune_operator.plan.observe import Job, Pod
from tests.operator.worlds import committed, ended, follow, look, pending, policy


def edited(job: Job) -> Job:
    """Return the job with another interval between checkpoints."""
    checkpoints = job.spec.checkpoints.replace(interval_steps=7)
    return replace(job, spec=job.spec.replace(checkpoints=checkpoints))


def first_pods(job: Job, *indexes: int) -> list[Pod]:
    """Return workers with the annotation that they were created with."""
    digest = job.status.attempts[-1].config_digest
    return [pending(index, config=digest) for index in indexes]


def test_an_edit_before_the_first_pod_changes_the_attempt_and_nothing_is_stopped():
    job = committed()
    before = job.status.attempts[-1].config_digest
    decision = look(edited(job), now=10)
    assert decision.commits
    assert decision.create == []
    job = edited(job).with_status(decision.status)
    assert job.status.attempts[-1].config_digest not in (None, before)
    assert [item["kind"] for item in look(job, now=10).create] == ["Service", "Pod", "Pod"]


def test_a_partly_created_gang_is_stopped_and_created_again_without_counting():
    job = committed()
    pods = first_pods(job, 0)
    decision, job = follow(edited(job), *pods, now=20)
    assert (decision.status.phase, decision.status.reason) == ("Restarting", "ConfigurationChanged")
    assert decision.status.message == (
        "the job was edited while its pods were being created; they are created again; waiting for "
        "1 worker to end"
    )
    assert [delete.name for delete in decision.delete] == ["a-1-0"]
    gone = [pod.vanished() for pod in pods]
    decision, job = follow(job, *gone, now=30)
    first, second = job.status.attempts
    assert (first.outcome, first.reason, first.counted) == (
        "Released",
        "ConfigurationChanged",
        False,
    )
    assert job.status.restarts == job.status.counted_restarts == 0
    assert second.start_time == first.completion_time
    assert len(decision.create) == 3


def test_a_complete_gang_runs_on_with_what_it_was_created_with():
    job = committed()
    decision, job = follow(job, *first_pods(job, 0, 1), now=20)
    decision, job = follow(edited(job), *first_pods(job, 0, 1), now=30)
    assert decision.status.attempts[-1].stop_reason is None
    assert decision.delete == []


def test_a_pod_that_was_created_late_with_another_configuration_stops_the_gang():
    job = committed()
    pods = [*first_pods(job, 0), pending(1, config="other")]
    decision, _ = follow(job, *pods, now=20)
    assert decision.status.reason == "ConfigurationChanged"


def test_pods_of_an_operator_that_wrote_no_digest_are_left_alone():
    job = committed()
    old = job.status.attempts[-1].replace(config_digest=None)
    job = edited(job.with_status(job.status.replace(attempts=[old])))
    assert not configuration.changed(job)
    assert len(look(job, pending(0), now=20).create) == 2


def test_the_digest_covers_only_what_the_trainers_receive():
    job = committed()
    assert not configuration.changed(policy(job, max_restarts=9))
    assert configuration.changed(policy(job, progress_deadline_seconds=99))


def test_the_next_attempt_has_the_edited_configuration():
    job = edited(committed())
    before = job.status.attempts[-1].config_digest
    created = job.status.attempts[-1].replace(created=True)
    job = job.with_status(job.status.replace(attempts=[created]))
    pods = [ended(pod, 1, 40) for pod in first_pods(job, 0, 1)]
    _, job = follow(job, *pods, now=60)
    _, job = follow(job, *pods, now=80)
    assert job.status.attempt == 2
    assert job.status.attempts[-1].config_digest not in (None, before)
    assert job.status.attempts[0].config_digest is None  # only needed while it is the newest one
