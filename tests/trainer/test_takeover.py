"""A new job goes on with the run of one that failed."""

import os
import signal

import pytest

from tests.trainer import gang
from tests.trainer.conftest import MakeJob

pytestmark = pytest.mark.slow


def test_a_job_goes_on_where_another_one_failed(make_job: MakeJob) -> None:
    job, plan = make_job(), gang.make_plan()
    job.nodes = 1
    job.start(plan)
    job.wait_for_text("saved a checkpoint of step 4")
    os.kill(job.pods[0].ranks[0], signal.SIGKILL)
    assert job.wait(60) == [137], job.log

    heir = gang.Job(job.claim, job.config | {"jobUid": "uid-2", "jobName": "heir"}, nodes=1)
    assert heir.prepare().wait() == 73, heir.log
    assert "set checkpoints.onExisting to Resume to go on where it stopped" in heir.log
    heir.config["checkpoints"] = job.config["checkpoints"] | {"onExisting": "Resume"}
    assert heir.prepare().wait() == 0, heir.log
    heir.start(plan)
    assert heir.wait() == [0], heir.log
    assert "resumed from checkpoint step-" in heir.log
    assert "] step 4 of" not in heir.log  # it was not begun again
    result = heir.pods[0].result
    assert (result.outcome, result.progress and result.progress.step) == ("Succeeded", gang.STEPS)
    assert result.evaluation is not None
    assert result.evaluation.baseline is not None  # measured by the job before

    job.start(plan)  # somebody lets the failed one try again
    assert job.wait() == [64], job.log
    assert job.pods[0].result.reason == "StorageInUse"
    assert "belongs to job default/heir now" in job.pods[0].result.message
