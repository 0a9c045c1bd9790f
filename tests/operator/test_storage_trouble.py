"""Storage that is full, or that another job uses: the job waits for minutes and never fails."""

import pytest

from finetune_api import reasons
from tests.operator.test_preparation import made
from tests.operator.worlds import (
    at,
    checkpoint,
    committed,
    ended,
    follow,
    look,
    make_job,
    prepare_pod,
    progressed,
    result,
    running,
    worker,
)

FULL = "pvc://w/runs/a: [Errno 28] No space left on device"
OWNER = "pvc://w/runs/a belongs to job default/b, which has not ended"
CASES = {73: (reasons.STORAGE_NOT_WRITABLE, FULL), 69: (reasons.STORAGE_IN_USE, OWNER)}


def stopped_by_storage(code, number, now):
    reason, text = CASES[code]
    message = result("Failed", reason=reason, message=text, **progressed(20, saved=10))
    return [
        ended(worker(0, number), code, now, message),
        ended(worker(1, number), 88, now),
    ]


@pytest.mark.parametrize("code", CASES)
def test_storage_trouble_backs_off_for_minutes_and_is_not_counted(code):
    job, now, waits = running(), 100.0, []
    for number in range(1, 30):
        gang = stopped_by_storage(code, number, now)
        job = job.with_status(look(job, *gang, now=now).status)
        attempt = job.status.attempts[-1]
        assert (attempt.outcome, attempt.reason) == ("Released", CASES[code][0])
        assert not attempt.counted
        _, job = follow(job, *gang, now=now + 1)
        assert job.status.phase == "Restarting"
        assert CASES[code][1] in job.status.message
        waits.append((job.status.next_attempt_time - at(now)).total_seconds())
        now += 400
        _, job = follow(job, *gang, now=now)
        job = running(job, now=now + 10)
        now += 100
    assert waits[:4] == [60, 120, 240, 300]
    assert set(waits[4:]) == {300}
    assert (job.status.restarts, job.status.counted_restarts) == (0, 0)


def test_a_gang_that_never_was_complete_waits_for_its_storage_too():
    job = committed()
    waiting = worker(1, running=False, phase="Pending")
    job = job.with_status(look(job, worker(0), waiting, now=20).status)
    gang = [stopped_by_storage(69, 1, 30)[0], waiting]
    attempt = look(job, *gang, now=31).status.attempts[-1]
    assert (attempt.outcome, attempt.reason) == ("Released", reasons.STORAGE_IN_USE)


def test_a_prepare_pod_waits_for_the_owner_of_its_storage_and_is_not_counted():
    job, now, waits = make_job(), 0, []
    for count in range(1, 20):
        message = result("Failed", reason=reasons.STORAGE_IN_USE, message=OWNER)
        pod = ended(made(job, uid=f"p-{now}"), 69, now, message)
        _, job = follow(job, pod, now=now)
        assert (job.status.prepare_interruptions, job.status.prepare_failures) == (count, 0)
        status = look(job, now=now + 1).status
        assert (status.phase, OWNER in status.message) == ("Preparing", True)
        waits.append((job.status.next_attempt_time - at(now)).total_seconds())
        now += 400
    assert waits[:4] == [60, 120, 240, 300]
    assert set(waits[4:]) == {300}


def test_storage_that_the_prepare_pod_cannot_write_fails_the_job():
    message = result("Failed", reason=reasons.STORAGE_NOT_WRITABLE, message=FULL)
    status = look(make_job(), ended(prepare_pod(), 73, 5, message)).status
    assert (status.phase, status.reason) == ("Failed", reasons.STORAGE_NOT_WRITABLE)


def test_storage_trouble_leaves_the_count_of_earlier_failures():
    job = running()
    crash = [ended(worker(0), 1, 40), ended(worker(1), 88, 40)]
    _, job = follow(job, *crash, now=41)
    _, job = follow(job, *crash, now=100)
    job = running(job, now=110)
    job = job.with_status(job.status.replace(latest_checkpoint=checkpoint(0)))
    message = result("Failed", reason=reasons.STORAGE_NOT_WRITABLE, message=FULL)
    gang = [ended(worker(0, 2), 73, 200, message), ended(worker(1, 2), 88, 200)]
    _, job = follow(job, *gang, now=201)
    assert (job.status.counted_restarts, job.status.phase) == (1, "Restarting")
