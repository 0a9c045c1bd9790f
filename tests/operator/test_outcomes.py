"""The table of endings: every cause leads to its row, and every row to what the table says."""

from dataclasses import replace

import pytest

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_operator.plan.outcomes import ENDINGS, STOPS, Cause, cause_of_exit
from finetune_operator.plan.verdict import verdict
from tests.operator.worlds import (
    at,
    committed,
    ended,
    follow,
    look,
    pending,
    progressed,
    report,
    result,
    running,
    worker,
)

EXITS = {
    64: (Cause.PERMANENT_EXIT, reasons.BAD_CONFIGURATION),
    65: (Cause.PERMANENT_EXIT, reasons.BAD_DATA),
    66: (Cause.PERMANENT_EXIT, reasons.INPUT_MISSING),
    69: (Cause.STORAGE, reasons.STORAGE_IN_USE),
    73: (Cause.STORAGE, reasons.STORAGE_NOT_WRITABLE),
    75: (Cause.STOPPED_UNASKED, reasons.STOPPED),
    77: (Cause.PERMANENT_EXIT, reasons.NOT_PERMITTED),
    78: (Cause.OTHER_EXIT, reasons.ENVIRONMENT_UNUSABLE),
    79: (Cause.CONSEQUENT_EXIT, reasons.FENCED),
    86: (Cause.OTHER_EXIT, reasons.DIVERGED),
    87: (Cause.OTHER_EXIT, reasons.OUT_OF_MEMORY),
    88: (Cause.CONSEQUENT_EXIT, reasons.PEER_LOST),
    89: (Cause.OTHER_EXIT, reasons.HANG),
    1: (Cause.OTHER_EXIT, reasons.CRASHED),
    137: (Cause.OTHER_EXIT, reasons.CRASHED),
}


def test_every_exit_code_has_a_row():
    assert set(ExitCode) - {ExitCode.DONE} <= set(EXITS)


@pytest.mark.parametrize("code", EXITS)
def test_an_exit_code_leads_to_its_row(code):
    cause, reason = EXITS[code]
    assert cause_of_exit(code, gang_asked=False, pod_asked=False) == cause
    gang = [ended(worker(index), code, 30) for index in (0, 1)]
    found = verdict(gang, 2, True, at(60))
    assert found
    assert (found.ending, found.reason, found.exit_code) == (ENDINGS[cause], reason, code)


SAVED = result("Stopped", reason="Stopped", **progressed(20, saved=20))
GANGS = {
    Cause.COMPLETED: [ended(worker(0), 0, 30), ended(worker(1), 0, 30)],
    Cause.PREEMPTED: [
        ended(worker(0), 75, 30, SAVED),
        ended(worker(1, disrupted=True, deletion=at(300)), 75, 30),
    ],
    Cause.KILLED: [
        ended(worker(0), 88, 30),
        ended(worker(1, disrupted=True, deletion=at(300)), 137, 30),
    ],
    Cause.STOPPED_UNASKED: [ended(worker(0), 75, 30, SAVED), ended(worker(1), 75, 30)],
    Cause.PERMANENT_EXIT: [ended(worker(0), 65, 30), ended(worker(1), 88, 30)],
    Cause.STORAGE: [ended(worker(0), 73, 30), ended(worker(1), 88, 30)],
    Cause.OTHER_EXIT: [ended(worker(0), 1, 30), ended(worker(1), 88, 30)],
    Cause.CONSEQUENT_EXIT: [ended(worker(0), 88, 30), ended(worker(1), 88, 30)],
    Cause.POD_FAILED: [
        worker(0, running=False, phase="Failed", failure=("NodeShutdown", "the node shuts down")),
        ended(worker(1), 88, 30),
    ],
    Cause.POD_VANISHED: [worker(0).vanished(at(30)), ended(worker(1), 88, 31)],
    Cause.NODE_LOST: [worker(0, deletion=at(-100)), ended(worker(1), 88, 30)],
    Cause.REFUSED: [
        worker(0),
        pending(1, phase="Failed", failure=("OutOfcpu", "the node has not enough cpu")),
    ],
    Cause.START_INTERRUPTED: [worker(0), pending(1, deletion=at(60), disrupted=True)],
    Cause.PEER_MISSING: [ended(worker(0), 88, 30), pending(1)],
}
INCOMPLETE = (Cause.REFUSED, Cause.START_INTERRUPTED, Cause.PEER_MISSING)


def test_every_cause_has_a_row_and_an_example():
    assert set(ENDINGS) == set(GANGS) == set(Cause)


@pytest.mark.parametrize("cause", Cause, ids=lambda cause: cause.name)
def test_a_gang_ends_as_its_row_says(cause):
    ending = ENDINGS[cause]
    job = running()
    if cause in INCOMPLETE:
        job = committed()
        job = job.with_status(look(job, worker(0), pending(1), now=20).status)
    job = job.with_status(look(job, *GANGS[cause], now=60).status)
    attempt = job.status.attempts[-1]
    assert attempt.outcome == ending.outcome
    assert ending.reason in (None, attempt.reason)
    assert bool(attempt.counted) == ending.counted
    assert job.status.counted_restarts == ending.counted
    follows = job.status.next_attempt_time is not None
    assert follows == (ending.outcome != "Succeeded" and not ending.permanent)
    waits = follows and job.status.next_attempt_time > at(60)
    assert waits == bool(ending.backs_off or ending.counted)


@pytest.mark.parametrize("reason", STOPS)
def test_a_stopped_gang_ends_as_its_row_says(reason):
    ending = STOPS[reason]
    job = running()
    attempt = job.status.attempts[-1].replace(stop_reason=reason, message="a policy requested it")
    job = job.with_status(job.status.replace(attempts=[attempt]))
    deletions = look(job, worker(0), worker(1), now=40).delete
    assert [delete.grace for delete in deletions] == [None if ending.saves else 10] * 2
    gang = [ended(worker(index, deletion=at(340)), 137, 50) for index in (0, 1)]
    job = job.with_status(look(job, *gang, now=51).status)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason) == (ending.outcome, reason)
    assert bool(attempt.counted) == ending.counted
    assert (job.status.next_attempt_time is None) == ending.permanent
    waits = job.status.next_attempt_time and job.status.next_attempt_time > at(51)
    assert bool(waits) == bool(ending.backs_off or ending.counted)


def test_a_preempted_gang_without_a_new_step_counts():
    gang = [replace(GANGS[Cause.PREEMPTED][0], ended=ended(worker(0), 75, 30).ended)]
    _, job = follow(running(), *gang, GANGS[Cause.PREEMPTED][1], now=60, most=1)
    assert ENDINGS[Cause.PREEMPTED].counted_without_progress
    assert job.status.attempts[-1].counted


KILLED_AT_ONCE = (ended(worker(0), 88, 21), ended(worker(1, deletion=at(300)), 143, 21))


@pytest.mark.parametrize(
    ("gang", "reported", "why"),
    [
        (KILLED_AT_ONCE, None, "before the first step; nothing is lost"),
        (GANGS[Cause.KILLED], None, "before it had saved a checkpoint"),
        (GANGS[Cause.KILLED], {}, "before the first step; nothing is lost"),
        (GANGS[Cause.KILLED], progressed(3), "before it had saved a checkpoint"),
    ],
    ids=["a second after the start", "without a report", "while loading", "after three steps"],
)
def test_a_worker_that_had_nothing_to_save_lost_nothing(gang, reported, why):
    newest = None if reported is None else report(**reported)
    attempt = look(running(), *gang, now=46, report=newest).status.attempts[-1]
    assert (attempt.outcome, attempt.reason) == ("Failed", "Evicted")
    assert attempt.message.startswith(f"worker 1: it was asked to stop and was killed {why}")
