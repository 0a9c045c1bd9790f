"""Device seconds: exact where ends were observed, marked and corrected elsewhere."""

from dataclasses import replace

import pytest

from finetune_api.progress import StepLedger
from finetune_api.run import AttemptRecord
from finetune_operator.plan import usage
from tests.operator.worlds import (
    at,
    committed,
    ended,
    look,
    progressed,
    report,
    result,
    running,
    worker,
)


def fresh(workers=2, devices=4):
    job = committed(workers={"replicas": workers, "devicesPerWorker": devices})
    return job.status.attempts[0].replace(created=True)


def over(pod, **changes):
    """Return a pod that has failed, and whose kubelet does not know when its container ended."""
    return replace(pod, running=False, phase="Failed", **changes)


CASES = {
    "nothing is bound": ([worker(0, scheduled=None), worker(1, scheduled=None)], 50, 0, False),
    "both run": ([worker(0), worker(1)], 50, 4 * 80, False),
    "one ended": ([worker(0), ended(worker(1), 0, 30)], 50, 4 * 60, False),
    "evicted without its container's end, which was seen": (
        [worker(0), over(worker(1), proof=at(15), end_seen=at(20))],
        50,
        4 * 50,
        True,
    ),
    "evicted without its container's end, which is only proved": (
        [worker(0), over(worker(1), proof=at(20))],
        50,
        4 * 50,
        True,
    ),
    "evicted, by a node whose clock is ahead": (
        [worker(0), over(worker(1), proof=at(500))],
        50,
        4 * 80,
        True,
    ),
    "drained before its container ran": (
        [worker(0), over(worker(1, running=False), proof=at(30))],
        50,
        4 * 60,
        True,
    ),
    "refused by its node before it was bound": (
        [worker(0), over(worker(1, scheduled=None), proof=at(30))],
        50,
        4 * 40,
        True,
    ),
    "its sidecar outlives its trainer": (
        [worker(0), replace(ended(worker(1), 0, 30), phase="Running", released=None)],
        50,
        4 * 80,
        False,
    ),
    "its deletion was observed": ([worker(0), worker(1).vanished(at(25))], 50, 4 * 55, True),
    "its deletion was observed, never bound": (
        [worker(0), worker(1, scheduled=None).vanished(at(25))],
        50,
        4 * 40,
        False,
    ),
    "found missing, may have been bound": (
        [worker(0), worker(1, scheduled=None).vanished()],
        50,
        4 * 40,
        True,
    ),
    "the clock of a node is behind": ([worker(0, scheduled=at(60)), worker(1)], 50, 4 * 40, False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pod_is_charged_from_its_binding_until_its_end(name):
    pods, now, seconds, estimated = CASES[name]
    attempt = usage.account(fresh(), pods, at(now))
    assert (attempt.device_seconds, attempt.estimated) == (seconds, estimated)


def test_a_pod_that_was_found_missing_is_charged_up_to_the_last_proof_of_life():
    attempt = usage.account(fresh(), [worker(0), worker(1)], at(50))
    later = usage.account(
        attempt, [worker(0)], at(200)
    )  # another operator, which never observed worker 1
    assert later.device_seconds == 4 * (190 + 40)
    assert (later.vanished_workers, later.estimated) == (1, True)
    again = usage.account(later, [worker(0)], at(300))
    assert again.device_seconds == 4 * (290 + 40)


def test_a_final_sum_does_not_depend_on_an_operator_clock_that_was_ahead():
    ahead = usage.account(fresh(), [worker(0), worker(1)], at(400))
    ends = [ended(worker(0), 0, 110), ended(worker(1), 0, 111)]
    attempt = usage.finalize(usage.account(ahead, ends, at(401)), ends)
    assert attempt.device_seconds == 4 * (100 + 101)
    assert not attempt.estimated


def test_a_gang_that_was_never_complete_keeps_the_larger_sum():
    """Two of three workers had a node, and one vanished before its end was observed."""
    attempt = fresh(workers=3).replace(created=False)
    attempt = usage.account(attempt, [worker(0), worker(1)], at(610))
    seen = [ended(worker(0), 143, 620)]
    attempt = usage.finalize(usage.account(attempt, seen, at(700)), seen)
    assert attempt.device_seconds == 4 * (600 + 600)
    assert attempt.estimated


@pytest.mark.parametrize("created", [True, False])
def test_an_end_that_no_kubelet_knows_never_reduces_the_sum(created):
    """ContainerStatusUnknown: ten hours on eight devices, and the operator was restarted."""
    attempt = fresh().replace(created=created)
    attempt = usage.account(attempt, [worker(0), worker(1)], at(36_010))
    lost = [over(worker(index), proof=at(12)) for index in (0, 1)]
    for now in (36_020, 36_030):
        attempt = usage.account(attempt, lost, at(now))
        assert (attempt.device_seconds, attempt.estimated) == (8 * 36_000, True)
    final = usage.finalize(attempt, lost)
    assert (final.device_seconds, final.estimated) == (8 * 36_000, True)


def test_a_pod_of_unknown_end_does_not_hide_the_time_of_the_others():
    attempt = usage.account(fresh(), [worker(0), worker(1)], at(110))
    lost = over(worker(1), proof=at(12))
    attempt = usage.account(attempt, [worker(0), lost], at(200))
    assert attempt.device_seconds == 4 * (190 + 100)


def test_a_pod_that_was_created_again_is_charged_twice():
    """One of two workers was drained while its image was pulled, before the gang was complete."""
    job = committed()
    first = over(worker(0, running=False), proof=at(81), end_seen=at(81)).vanished(at(82))
    second = worker(0, uid="again", running=False, scheduled=at(100))
    for now in (110, 120):
        status = look(job, first, second, now=now).status
        assert status.usage.device_seconds == 4 * (71 + now - 100)
        job = job.with_status(status)


def test_the_final_sum_with_a_lost_pod_is_an_estimate():
    lost = worker(1, deletion=at(40))
    pods = [ended(worker(0), 88, 50), lost]
    attempt = usage.finalize(usage.account(fresh(), pods, at(101)), pods)
    assert attempt.estimated
    assert attempt.device_seconds == 4 * (40 + 91)


def vanished_job():
    """Return a job whose worker 0 of attempt 1 vanished unobserved, and whose attempt 2 runs."""
    job = running()
    job = job.with_status(look(job, worker(1), now=200).status)
    end = [ended(worker(1), 88, 205)]
    job = job.with_status(look(job, *end, now=230).status)
    job = job.with_status(look(job, *end, now=231).status)
    return running(job.with_status(look(job, *end, now=400).status), now=420)


def test_the_record_of_an_attempt_corrects_its_estimate_while_it_grows():
    job = vanished_job()
    first = job.status.attempts[0]
    assert (first.settled, first.estimated, first.vanished_workers) == (True, True, 1)
    ledger = StepLedger(productive_seconds=100, redone_seconds=5, first_step=0, highest_step=30)
    record = AttemptRecord(attempt=1, update_time=at(204), ledger=ledger)
    pods = (worker(0, 2), worker(1, 2))
    status = look(job, *pods, now=430, report=report(attempt=2, earlier_attempts=[record])).status
    corrected = status.attempts[0]
    missing = (at(204) - first.vanished_time).total_seconds()
    assert corrected.device_seconds == first.device_seconds + 4 * missing
    assert (corrected.productive_device_seconds, corrected.lost_device_seconds) == (800, 40)
    assert corrected.last_step == 30
    assert corrected.estimated  # the other worker is only assumed to have ended with it
    for _ in range(2):
        job = job.with_status(status)
        status = look(job, *pods, now=440, report=report(attempt=2, earlier_attempts=[record]))
        assert status.status.attempts[0] == corrected, "the same record corrects nothing more"
        status = status.status
    # Its process was cut off, and went on.
    grown = ledger.replace(productive_seconds=150, highest_step=45)
    later = record.replace(update_time=at(300), ledger=grown)
    again = look(job, *pods, now=440, report=report(attempt=2, earlier_attempts=[later])).status
    assert again.attempts[0].device_seconds == corrected.device_seconds + 4 * 96
    assert again.attempts[0].last_step == 45


def test_a_record_never_goes_below_what_a_report_proved():
    """The record is written once a minute, the report was newer: step 60 became step 48."""
    job = running()
    first = report(**progressed(60, redone=7))
    job = job.with_status(look(job, worker(0), worker(1), now=180, report=first).status)
    job = job.with_status(look(job, worker(1), now=200).status)
    end = [ended(worker(1), 88, 205)]
    for now in (230, 231, 400):
        job = job.with_status(look(job, *end, now=now).status)
    job = running(job, now=420)
    before = job.status.attempts[0]
    assert (before.last_step, before.settled, before.estimated) == (60, True, True)
    ledger = StepLedger(productive_seconds=40, redone_seconds=2, first_step=3, highest_step=48)
    for seconds in (150, 204):
        record = AttemptRecord(attempt=1, update_time=at(seconds), ledger=ledger)
        pods, seen = (worker(0, 2), worker(1, 2)), report(attempt=2, earlier_attempts=[record])
        job = job.with_status(look(job, *pods, now=430, report=seen).status)
        after = job.status.attempts[0]
        assert (after.last_step, after.first_step) == (60, 0)
        assert after.productive_device_seconds == before.productive_device_seconds
        assert after.lost_device_seconds == before.lost_device_seconds


ENDS_ON_A_LOST_NODE = {"before it was given up": 322, "long after it was given up": 1000}


@pytest.mark.parametrize("end", ENDS_ON_A_LOST_NODE.values(), ids=ENDS_ON_A_LOST_NODE)
def test_the_exact_end_of_a_worker_on_a_lost_node_corrects_the_estimate(end):
    """Seen on real nodes: 398 s were charged, and the container had run for 312 s."""
    job = running()
    peer, lost = ended(worker(0), 88, 300), worker(1, deletion=at(347))
    for now in (408, 408, 408):  # a minute past its deletion
        job = job.with_status(look(job, peer, lost, now=now).status)
    first = job.status.attempts[0]
    assert (first.device_seconds, first.estimated) == (4 * (290 + 398), True)
    job = running(job.with_status(look(job, peer, lost, now=500).status), now=520)
    gang = [worker(0, 2), worker(1, 2)]
    back = ended(replace(lost, gone=True), 137, end)
    for now in (1100, 1110):
        job = job.with_status(look(job, *gang, back, now=now).status)
        first = job.status.attempts[0]
        assert (first.device_seconds, first.estimated) == (4 * (290 + end - 10), False)
        sums = sum(attempt.device_seconds for attempt in job.status.attempts)
        assert job.status.usage.device_seconds == sums


def test_the_exact_end_is_not_awaited_of_a_pod_that_was_seen_to_vanish():
    job = running()
    peer, lost = ended(worker(0), 88, 300), worker(1).vanished(at(305))
    for now in (320, 321, 322):
        job = job.with_status(look(job, peer, lost, now=now).status)
    assert job.status.attempts[0].lost_workers == []


def test_an_attempt_whose_ends_were_observed_is_never_corrected():
    job = running()
    crash = [ended(worker(0), 1, 30, result("Failed", **progressed(9))), ended(worker(1), 88, 31)]
    for now in (32, 33, 60):
        job = job.with_status(look(job, *crash, now=now).status)
    first = job.status.attempts[0]
    assert first.settled
    record = AttemptRecord(attempt=1, update_time=at(500), ledger=StepLedger())
    job = running(job, now=70)
    status = look(
        job, worker(0, 2), worker(1, 2), now=80, report=report(attempt=2, earlier_attempts=[record])
    ).status
    assert status.attempts[0] == first


def test_an_operator_that_restarts_during_the_back_off_does_not_change_final_sums():
    job = running()
    crash = [ended(worker(0), 1, 30, result("Failed", **progressed(9))), ended(worker(1), 88, 31)]
    for now in (32, 33):
        job = job.with_status(look(job, *crash, now=now).status)
    before = job.status
    after = look(job, now=36)  # its caches have no pod of that attempt
    assert after.status.attempts == before.attempts
    assert after.status.usage == before.usage


def test_the_three_parts_add_up_if_the_ledger_exceeds_the_device_time():
    attempt = fresh().replace(device_seconds=100)
    split = usage.split(attempt, StepLedger(productive_seconds=90, redone_seconds=90))
    assert split.productive_device_seconds == 100
    assert split.lost_device_seconds == 0


def test_folding_old_attempts_keeps_their_sums():
    job = committed()
    attempt = fresh().replace(device_seconds=10, active_seconds=3, outcome="Failed", last_step=7)
    many = [attempt.replace(number=n) for n in range(1, 14)]
    status = job.status.replace(attempts=many[:10], folded_attempts=None)
    folded = usage.fold(status, 9)
    assert [a.number for a in folded.attempts] == list(range(2, 11))
    assert usage.total(folded).device_seconds == usage.total(status).device_seconds
    assert folded.folded_attempts.active_seconds == 3
    assert replace(job, status=folded).status.folded_attempts.last_step == 7
