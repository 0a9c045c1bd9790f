"""What the columns of `kubectl get`, the message and events say, and when they say nothing."""

import pytest

from finetune_api.progress import Evaluation, Progress
from finetune_operator.plan.events import between
from tests.operator.worlds import (
    at,
    committed,
    ended,
    follow,
    look,
    make_job,
    prepared,
    progressed,
    report,
    result,
    running,
    worker,
)

GANG = (worker(0), worker(1))


def seen(**facts):
    """Return the status of a gang that runs, after a report."""
    return look(running(), *GANG, report=report(**facts)).status


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ({"baseline": 2.5, "best": 2.5, "best_step": 0}, "2.500, best 2.500"),
        ({"baseline": 2.5, "last": 1.8021, "best": 1.731}, "1.802, best 1.731"),
        ({"baseline": 2.5, "last": 1.25e38, "best": 1.25e-7}, "1.25e+38, best 0.000"),
        ({"best": 1.7}, None),
        ({}, None),
    ],
)
def test_the_last_and_the_best_validation_loss_are_a_column(found, shown):
    display = seen(evaluation=Evaluation(**found)).display
    assert display.validation == shown


def test_a_job_without_an_evaluation_has_no_validation_loss():
    assert seen().display.validation is None


def test_the_longest_time_left_fits_its_column():
    display = seen(progress=Progress(step=1, total_steps=100, eta_seconds=10**15)).display
    assert display.eta == "11574074074d1h"


@pytest.mark.parametrize("left", [0, None])
def test_no_time_left_is_not_shown(left):
    progress = Progress(step=100, total_steps=100, train_loss=1.5, eta_seconds=left)
    status = seen(progress=progress)
    assert status.message == "step 100 of 100, loss 1.500"
    assert status.display.eta is None


def crashed(reason: str = "Crashed", step: int = 36):
    """Return a job whose first attempt failed at a step, between its attempts."""
    message = result("Failed", reason=reason, **progressed(step, saved=24))
    _, job = follow(running(), ended(worker(0), 1, 60, message), ended(worker(1), 1, 60), now=61)
    return job


def test_the_cause_of_the_last_restart_stays_a_column():
    job = crashed()
    assert (job.status.phase, job.status.display.restarted) == ("Restarting", "Crashed at step 36")
    _, job = follow(job, now=200)
    assert (job.status.attempt, job.status.display.restarted) == (2, "Crashed at step 36")
    gang = (worker(0, 2), worker(1, 2))
    job = running(job, now=210)
    status = look(job, *gang, now=220, report=report(attempt=2, **progressed(25, saved=24))).status
    assert (status.display.step, status.display.restarted) == ("25/100", "Crashed at step 36")


def test_progress_goes_back_with_the_next_attempt_and_says_why():
    """Its first report comes minutes later, once the model is loaded."""
    job = crashed()
    assert job.status.progress.step == 36
    _, job = follow(job, now=200)
    found = job.status.progress
    assert (found.step, found.total_steps, found.train_loss) == (24, 100, None)
    assert (found.eta_seconds, job.status.display.step) == (None, "24/100")
    job = running(job, now=210)
    assert job.status.message == (
        "loading the model; continuing after step 24, because attempt 1 ended with Crashed at "
        "step 36"
    )


def test_without_a_checkpoint_the_next_attempt_starts_again():
    message = result("Failed", reason="Crashed", **progressed(5))
    _, job = follow(running(), ended(worker(0), 1, 60, message), ended(worker(1), 1, 60), now=61)
    _, job = follow(job, now=200)
    assert (job.status.attempt, job.status.progress.step) == (2, 0)


def test_progress_stays_where_everything_was_saved():
    message = result("Stopped", reason="Stopped", **progressed(24, saved=24))
    gang = (ended(worker(0), 75, 60, message), ended(worker(1, deletion=at(80)), 75, 60))
    _, job = follow(running(), *gang, now=61)
    assert (job.status.attempt, job.status.progress.step) == (2, 24)


def test_restarts_are_never_fewer_than_those_that_count():
    job = crashed()
    assert (job.status.phase, job.status.counted_restarts) == ("Restarting", 1)
    assert job.status.restarts == 1
    _, job = follow(job, now=200)
    assert (job.status.attempt, job.status.restarts, job.status.counted_restarts) == (2, 1, 1)


def test_a_restart_that_an_older_operator_counted_late_is_not_lost():
    job = crashed()
    job = job.with_status(job.status.replace(restarts=0))
    _, job = follow(job, now=200)
    assert (job.status.attempt, job.status.restarts) == (2, 1)


def test_a_job_that_gives_up_was_not_restarted():
    _, job = follow(
        running(committed(runPolicy={"maxRestarts": 0})),
        ended(worker(0), 1, 60),
        ended(worker(1), 1, 60),
        now=61,
    )
    assert (job.status.phase, job.status.restarts) == ("Failed", 0)


def test_a_long_reason_fits_its_column():
    status = crashed(reason="R" * 64).status
    assert status.display.restarted == "R" * 31 + "…"


def test_a_job_that_was_not_restarted_names_no_cause():
    assert running().status.display.restarted is None
    failed = result("Failed", reason="BadData")
    _, job = follow(running(), ended(worker(0), 65, 60, failed), ended(worker(1), 88, 60), now=61)
    assert job.status.phase == "Failed"
    assert job.status.display.restarted is None


def prepared_event(**counts: int) -> str:
    job = committed()
    data = prepared().data.replace(**counts)
    new = job.status.replace(data=data)
    (event,) = [e for e in between(make_job().status, new) if e.reason == "Prepared"]
    return event.message


def test_only_what_was_left_out_is_listed():
    text = "100 examples in 50 rows, 500 of 1000 tokens are trained on"
    assert prepared_event() == text
    assert prepared_event(invalid=3) == f"{text}; left out: 3 invalid"
    assert prepared_event(dropped_overlong=2, dropped_empty=1, dropped_untrained=3) == (
        f"{text}; left out: 2 too long, 4 without trained tokens"
    )
