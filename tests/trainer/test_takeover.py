"""A new job resumes the run of a job that failed."""

import os
import signal

import pytest

from tests.trainer import gang
from tests.trainer.conftest import MakeJob

pytestmark = pytest.mark.slow


def test_a_new_job_resumes_the_run_of_a_failed_job(make_job: MakeJob) -> None:
    job, plan = make_job(), gang.make_plan()
    job.nodes = 1
    job.start(plan)
    job.wait_for_text("saved a checkpoint of step 4")
    os.kill(job.pods[0].ranks[0], signal.SIGKILL)
    assert job.wait(60) == [137], job.log

    successor = gang.Job(
        job.claim, job.config | {"jobUid": "uid-2", "jobName": "successor"}, nodes=1
    )
    assert successor.prepare().wait() == 73, successor.log
    assert "set checkpoints.onExisting to Resume to go on where it stopped" in successor.log
    successor.config["checkpoints"] = job.config["checkpoints"] | {"onExisting": "Resume"}
    assert successor.prepare().wait() == 0, successor.log
    successor.start(plan)
    assert successor.wait() == [0], successor.log
    assert "resumed from checkpoint step-" in successor.log
    assert "] step 4 of" not in successor.log  # the run did not begin again
    result = successor.pods[0].result
    assert (result.outcome, result.progress and result.progress.step) == ("Succeeded", gang.STEPS)
    assert result.evaluation is not None
    assert result.evaluation.baseline is not None  # measured by the first job

    job.start(plan)  # a user restarts the failed job
    assert job.wait() == [64], job.log
    assert job.pods[0].result.reason == "StorageInUse"
    assert "belongs to job default/successor now" in job.pods[0].result.message
