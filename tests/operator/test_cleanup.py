"""What is deleted of a finished job, and what is kept."""

from dataclasses import replace

import pytest

from tests.operator.worlds import at, ended, look, result, running, worker


def done(**run_policy):
    job = running()
    job = replace(job, spec=job.spec.replace(run_policy=job.spec.run_policy.replace(**run_policy)))
    status = job.status.replace(phase="Succeeded", completion_time=at(100))
    return job.with_status(status)


ENDED = ended(worker(0), 0, 90, result())
SIDECAR = replace(ended(worker(1), 0, 90), phase="Running")  # only its trainer has ended
LATE = worker(1, 2)  # created by a delayed request, after the job had finished


@pytest.mark.parametrize(
    ("policy", "deleted"),
    [
        ("None", {"a-2-1"}),
        ("Running", {"a-1-1", "a-2-1"}),
        ("All", {"a-1-0", "a-1-1", "a-2-1"}),
    ],
)
def test_the_clean_pod_policy_selects_the_pods_to_delete(policy, deleted):
    decision = look(done(clean_pod_policy=policy), ENDED, SIDECAR, LATE, now=101)
    assert {delete.name for delete in decision.delete} == deleted
    assert not decision.delete_job


def test_pods_that_are_terminating_are_not_deleted_again():
    terminating = replace(SIDECAR, deletion=at(130))
    assert not look(done(), ENDED, terminating, now=101).delete


def test_a_finished_job_is_deleted_after_its_time_to_live():
    job = done(ttl_seconds_after_finished=60)
    early = look(job, ENDED, now=159)
    assert not early.delete_job
    assert early.requeue_after == 1
    assert look(job, ENDED, now=160).delete_job


def test_a_job_without_a_time_to_live_is_kept():
    assert look(done(), ENDED, now=10**9).requeue_after is None
