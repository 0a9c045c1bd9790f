"""A new job resumes the run of a job that failed."""

import os
import signal

import pytest

from tests.trainer import gang
from tests.trainer.conftest import MakeJob

pytestmark = pytest.mark.slow


def test_a_new_job_resumes_the_run_of_a_job_that_has_ended(make_job: MakeJob) -> None:
    job, plan = make_job(), gang.make_plan()
    job.nodes = 1
    job.start(plan)
    job.wait_for_text("saved a checkpoint of step 4")
    job.pods[0].terminate()  # the job is suspended
    assert job.wait(60) == [75], job.log

    successor = gang.Job(
        job.claim, job.config | {"jobUid": "uid-2", "jobName": "successor"}, nodes=1
    )
    assert successor.prepare().wait() == 73, successor.log
    assert "set checkpoints.onExisting to Resume to go on where it stopped" in successor.log
    successor.config["checkpoints"] = job.config["checkpoints"] | {"onExisting": "Resume"}
    for unfinished in ({}, {"unfinishedOwners": ["uid-1"]}):
        successor.config |= unfinished
        assert successor.prepare().wait() == 69, successor.log
        assert "belongs to job default/job (uid uid-1), wh" in successor.log
    job.start(plan)  # the job goes on
    job.wait_for_text("resumed from checkpoint step-")
    os.kill(job.pods[0].ranks[0], signal.SIGKILL)
    assert job.wait(60) == [137], job.log

    successor.config |= {"unfinishedOwners": []}  # it failed for good, or was deleted
    assert successor.prepare().wait() == 0, successor.log
    successor.start(plan)
    assert successor.wait() == [0], successor.log
    assert "resumed from checkpoint step-" in successor.log
    assert "] step 4 of" not in successor.log  # the run did not begin again
    result = successor.pods[0].result
    assert (result.outcome, result.progress and result.progress.step) == ("Succeeded", gang.STEPS)
    assert result.evaluation is not None
    assert result.evaluation.baseline is not None  # measured by the first job

    job.config |= {"unfinishedOwners": ["uid-2"]}
    job.start(plan)  # one that the operator did not list: it waits, and does not fail for good
    assert job.wait() == [69], job.log
    assert job.pods[0].result.reason == "StorageInUse"
    assert "belongs to job default/successor (uid uid-2)" in job.pods[0].result.message
