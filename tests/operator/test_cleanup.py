"""What stays of a finished job."""

from dataclasses import replace

import pytest

from tests.operator.worlds import at, ended, look, result, running, worker


def done(**run_policy):
    job = running()
    job = replace(job, spec=job.spec.replace(run_policy=job.spec.run_policy.replace(**run_policy)))
    status = job.status.replace(phase="Succeeded", completion_time=at(100))
    return job.with_status(status)


CALM = ended(worker(0), 0, 90, result())
SIDECAR = replace(ended(worker(1), 0, 90), phase="Running")  # its trainer ended, a proxy goes on
STRAY = worker(1, 2)  # created by a request that was slower than the end


@pytest.mark.parametrize(
    ("policy", "goes"),
    [
        ("None", {"a-2-1"}),
        ("Running", {"a-1-1", "a-2-1"}),
        ("All", {"a-1-0", "a-1-1", "a-2-1"}),
    ],
)
def test_clean_pod_policy(policy, goes):
    decision = look(done(clean_pod_policy=policy), CALM, SIDECAR, STRAY, now=101)
    assert {doomed.name for doomed in decision.delete} == goes
    assert not decision.delete_job


def test_pods_that_are_going_are_not_deleted_twice():
    going = replace(SIDECAR, deletion=at(130))
    assert not look(done(), CALM, going, now=101).delete


def test_a_finished_job_is_deleted_after_its_time_to_live():
    job = done(ttl_seconds_after_finished=60)
    early = look(job, CALM, now=159)
    assert not early.delete_job
    assert early.requeue_after == 1
    assert look(job, CALM, now=160).delete_job


def test_a_job_without_a_time_to_live_stays():
    assert look(done(), CALM, now=10**9).requeue_after is None
