"""Corrections of what an ended attempt was charged, and of its steps, by what is found out later.

A process on a node that does not answer may go on. Its record on storage grows then, and once the
node is back, its kubelet reports the exact end. Neither takes anything back that was proved before.
"""

from dataclasses import replace
from datetime import datetime

from finetune_api.run import AttemptRecord
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.plan import usage
from finetune_operator.plan.observe import Pod, World


def by_records(
    status: FineTuneJobStatus, records: list[AttemptRecord], now: datetime
) -> FineTuneJobStatus:
    """Correct the estimates of earlier attempts from their own records, as long as these grow.

    The time of a record is a proof of life that the operator did not observe. It is that of worker
    0, and the other workers are assumed to have ended with it, so the attempt stays marked as
    estimated. A time in the future counts as now.
    """
    known = {record.attempt: record for record in records}
    return status.replace(
        attempts=[
            _by_record(attempt, known[attempt.number], now)
            if attempt.settled and attempt.estimated and attempt.number in known
            else attempt
            for attempt in status.attempts
        ]
    )


def _by_record(attempt: Attempt, record: AttemptRecord, now: datetime) -> Attempt:
    alive_at = min(record.update_time, now)
    if attempt.vanished_time and alive_at > attempt.vanished_time:
        missing = int((alive_at - attempt.vanished_time).total_seconds())
        more = missing * attempt.vanished_workers * attempt.devices_per_worker
        attempt = attempt.replace(
            device_seconds=attempt.device_seconds + more, vanished_time=alive_at
        )
    ledger = record.ledger
    if attempt.first_step is not None:  # worker 0 reported it
        ledger = ledger.replace(first_step=attempt.first_step)
    return usage.split(attempt, ledger).replace(corrected=True)


def by_exact_ends(world: World) -> World:
    """Correct attempts by the exact ends of workers that were charged as lost."""
    status = world.job.status
    corrected = [_by_exact_ends(attempt, world.pods) for attempt in status.attempts]
    if corrected == status.attempts:
        return world
    status = status.replace(attempts=corrected)
    status = status.replace(usage=usage.total(status))
    return replace(world, job=world.job.with_status(status))


def _by_exact_ends(attempt: Attempt, pods: tuple[Pod, ...]) -> Attempt:
    """Return the attempt with the exact ends that are known now."""
    if not attempt.lost_workers or attempt.accounted_until is None:
        return attempt
    ended = {
        pod.index: usage.seconds_between(pod.scheduled, pod.released)
        - usage.seconds_between(pod.scheduled, attempt.accounted_until)
        for pod in pods
        if pod.attempt == attempt.number
        and pod.index in attempt.lost_workers
        and pod.scheduled
        and pod.released
    }
    if not ended:
        return attempt
    left = [index for index in attempt.lost_workers if index not in ended]
    parts = attempt.productive_device_seconds + attempt.lost_device_seconds
    seconds = attempt.device_seconds + attempt.devices_per_worker * sum(ended.values())
    # All ends are exact now, unless other workers vanished.
    estimated = bool(left) or attempt.vanished_workers > 0
    return attempt.replace(
        device_seconds=max(seconds, parts), lost_workers=left, estimated=estimated, corrected=True
    )


def awaited(status: FineTuneJobStatus) -> set[tuple[int, int]]:
    """Return attempt and index of the workers whose exact ends would correct an estimate."""
    return {
        (attempt.number, index) for attempt in status.attempts for index in attempt.lost_workers
    }
