"""A gang without activity ends by itself, without the operator."""

import os
import signal

import pytest

from finetune_api.storage import AttemptFile
from tests.trainer import gang
from tests.trainer.conftest import MakeJob

pytestmark = pytest.mark.slow


async def test_a_frozen_rank_ends_its_gang_with_89_and_the_next_attempt_reports_it(
    make_job: MakeJob,
) -> None:
    job, plan = make_job(), gang.make_plan()
    job.config["progressDeadlineSeconds"] = 10
    job.start(plan)
    job.wait_for_step(3)
    os.kill(job.pods[0].ranks[0], signal.SIGSTOP)
    frozen, other = job.wait(60)
    # The other pod may lose its peer a moment before its own ten seconds are over.
    assert frozen == 89, job.log
    assert other in (88, 89), job.log
    result = job.pods[0].result
    assert (result.outcome, result.reason) == ("Failed", "Hang")
    assert "progressDeadlineSeconds is 10" in result.message
    assert "last reported" in result.message
    text = (job.storage / "attempts/1.json").read_text()
    record = AttemptFile.model_validate_json(text)
    assert (record.outcome, record.reason) == ("Failed", "Hang")

    job.config["progressDeadlineSeconds"] = 1800
    job.start(plan, highest_step=3)
    job.wait_for_step(4)
    (earlier,) = (await job.pods[0].report()).earlier_attempts
    assert (earlier.attempt, earlier.update_time) == (1, record.update_time)
    assert earlier.ledger == record.ledger
    assert (await job.pods[1].report()).earlier_attempts == []
    assert job.wait() == [0, 0], job.log


def test_a_prepare_pod_that_hangs_ends_with_89(make_job: MakeJob) -> None:
    job = make_job()
    job.config["progressDeadlineSeconds"] = 10
    pod = job.start_prepare()
    os.kill(pod.wait_for_children()[0], signal.SIGSTOP)
    assert pod.wait(60) == 89
    assert "PreparingData" in pod.result.message
