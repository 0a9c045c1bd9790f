"""Worker 0 exports the model after the other workers have ended, and may be alone by then."""

import pytest

from tests.operator.worlds import (
    OUTPUT,
    committed,
    ended,
    follow,
    look,
    progressed,
    report,
    result,
    running,
    worker,
)

EXPORTS = report(stage="Exporting", **progressed(100, saved=100))
TRAINS = report(stage="Training", **progressed(50))


def three():
    """Return a job of three workers that run."""
    job = committed(workers={"replicas": 3, "devicesPerWorker": 4})
    job = job.with_status(look(job, *[worker(i) for i in range(3)], now=20).status)
    return job.with_status(look(job, *[worker(i) for i in range(3)], now=60, report=TRAINS).status)


@pytest.mark.parametrize("left", [[], [2]], ids=["alone", "one pod is left"])
def test_an_operator_that_was_away_does_not_take_an_export_for_a_lost_worker(left):
    """The pods of workers that had ended were collected meanwhile."""
    job = three()
    pods = [worker(0), *(ended(worker(i), 0, 100) for i in left)]
    first = look(job, *pods, now=200)  # no report has been fetched yet
    assert not first.commits
    assert not first.delete
    decision = look(job.with_status(first.status), *pods, now=205, report=EXPORTS)
    assert not decision.commits
    assert not decision.delete
    assert (decision.status.phase, decision.status.stage) == ("Running", "Exporting")
    job = job.with_status(decision.status)
    again = look(job, *pods, now=206)  # another restart: the status knows of the export
    assert not again.commits
    message = result(output=OUTPUT, **progressed(100, saved=100))
    _, job = follow(job, ended(worker(0), 0, 300, message), *pods[1:], now=301)
    assert (job.status.phase, job.status.output) == ("Succeeded", OUTPUT)
    assert job.status.restarts == 0


def test_a_worker_that_vanishes_while_the_gang_trains_is_lost():
    job = running()
    assert look(job, worker(0), now=200, report=TRAINS).status.attempts[-1].reason == "WorkerLost"


def test_a_vanished_worker_is_lost_if_worker_0_sends_no_report():
    job = running()
    attempt = look(job, worker(0), now=200, silent=True).status.attempts[-1]
    assert attempt.reason == "WorkerLost"


def test_the_worker_that_exports_is_lost_if_its_pod_vanishes():
    job = three()
    job = job.with_status(
        look(job, worker(0), *[ended(worker(i), 0, 100) for i in (1, 2)], report=EXPORTS).status
    )
    _, job = follow(job, ended(worker(1), 0, 100), ended(worker(2), 0, 100), now=200)
    assert job.status.attempts[-1].reason == "WorkerLost"


def test_a_worker_that_failed_is_not_forgiven_by_the_export():
    job = three()
    gang = [worker(0), ended(worker(1), 1, 100)]
    attempt = look(job, *gang, now=130, report=EXPORTS).status.attempts[-1]
    assert (attempt.reason, attempt.worker) == ("Crashed", 1)
