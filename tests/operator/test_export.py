"""Worker 0 exports the model after the other workers have ended, and may be alone by then."""

import pytest

from tests.operator.worlds import (
    OUTPUT,
    at,
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
EXPORTS = EXPORTS.replace(progress=EXPORTS.progress.replace(eta_seconds=240))
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


UNKNOWN_ENDS = {
    "its node does not answer": worker(1, silent_since=at(90), node="n1"),
    "its pod is deleted from a node that does not answer": worker(
        1, silent_since=at(90), node="n1", deletion=at(120), disrupted=True
    ),
    "its deletion is overdue": worker(1, deletion=at(30), node="n1"),
    "it was evicted": worker(1, running=False, phase="Failed", failure=("Evicted", "no space")),
    "its node was restarted": ended(worker(1), 255, 95, reason="Unknown"),
    "it is gone": worker(1).vanished(at(95)),
}


@pytest.mark.parametrize("other", UNKNOWN_ENDS.values(), ids=UNKNOWN_ENDS)
def test_an_export_does_not_depend_on_how_the_other_workers_ended(other):
    """They have trained to the end. The node of one was lost before it reported that."""
    job, pods = three(), (worker(0), other, ended(worker(2), 0, 90))
    decision = look(job, *pods, now=100, report=EXPORTS)
    assert not decision.commits
    assert not decision.delete
    assert (decision.status.phase, decision.status.stage) == ("Running", "Exporting")
    assert decision.status.message.startswith("exporting the model of step 100")
    assert decision.status.display.eta is None
    message = result(output=OUTPUT, **progressed(100, saved=100))
    _, job = follow(
        job.with_status(decision.status), ended(worker(0), 0, 300, message), *pods[1:], now=301
    )
    assert (job.status.attempts[-1].outcome, job.status.output) == ("Succeeded", OUTPUT)


def test_a_worker_that_is_asked_to_stop_while_it_exports_is_waited_for():
    asked = worker(0, deletion=at(400), node="n0")
    pods = (asked, *(ended(worker(i), 0, 90) for i in (1, 2)))
    decision = look(three(), *pods, now=100, report=EXPORTS)
    assert not decision.commits
    assert decision.status.reason == "Preempted"


@pytest.mark.parametrize("seen", [True, False])
def test_an_operator_that_was_away_for_the_whole_run_knows_that_the_gang_was_complete(seen):
    """It finds worker 0 alone, which exports. It may not have seen that all pods existed."""
    job = committed()
    if seen:
        pods = (worker(0), worker(1, running=False, phase="Pending"))
        job = job.with_status(look(job, *pods, now=20).status)
    decision = look(job, worker(0), now=200, report=EXPORTS)
    assert not decision.delete
    assert not decision.create
    assert decision.status.attempts[-1].outcome is None
    assert (decision.status.phase, decision.status.stage) == ("Running", "Exporting")


def test_a_worker_that_has_trained_to_the_end_shows_the_export_before_the_next_report():
    pods = (worker(0), worker(1), ended(worker(2), 0, 90))
    facts = report(**progressed(100))
    status = look(three(), *pods, now=91, report=facts).status
    assert (status.stage, status.message) == ("Exporting", "exporting the model of step 100")


def test_a_gang_that_has_trained_and_of_which_no_pod_is_left_is_lost():
    """The operator saw its report, and was away before it saw that all workers ran."""
    job = committed()
    waits = worker(1, running=False, phase="Pending")
    attempt = look(job, worker(0), waits, now=20).status.attempts[-1].replace(last_step=5)
    job = job.with_status(job.status.replace(attempts=[attempt]))
    attempt = look(job, now=200).status.attempts[-1]
    assert (attempt.outcome, attempt.reason) == ("Failed", "WorkerLost")
