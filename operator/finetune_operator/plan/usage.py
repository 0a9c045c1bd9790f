"""Device time of attempts: exact where ends were seen, marked where they were not.

A pod costs its devices from the moment it was bound to a node until its trainer container ended.
The total of an attempt is recomputed from the pods at every look. A pod that vanished unseen stays
charged with what it had cost by its last proof of life, until the attempt's own record on storage
tells more. Once an attempt is settled its sums change by such a correction only.
"""

from datetime import datetime

from finetune_api.progress import StepLedger
from finetune_api.run import AttemptRecord
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, FineTuneJobStatus, Usage
from finetune_operator.plan.observe import Pod

PROOF_INTERVAL = 600.0  # s between writes that only say that a gang still lives
"""A gang that vanishes while nobody looks is charged up to the last of them."""


def begin(spec: FineTuneJobSpec, number: int, now: datetime) -> Attempt:
    """A new attempt, with the size of its gang: the spec may change while the job is suspended."""
    workers = spec.workers
    return Attempt(
        number=number,
        workers=workers.replicas,
        devices_per_worker=workers.devices_per_worker,
        start_time=now,
    )


def _end(pod: Pod) -> datetime | None:
    """When it ceased to hold devices; an evicted pod may never have told about its container."""
    return pod.ended.finished if pod.ended else pod.terminal_since or pod.gone_at


def _seconds(pod: Pod, until: datetime) -> int:
    if pod.scheduled is None:
        return 0
    end = min(until, _end(pod) or until)
    return max(0, int((end - pod.scheduled).total_seconds()))


def account(attempt: Attempt, pods: list[Pod], now: datetime) -> Attempt:
    """The attempt with its device seconds up to now."""
    devices = attempt.devices_per_worker
    # A pod that was found missing has no known cost: it may have got a node while nobody looked.
    known = [pod for pod in pods if _end(pod) or not pod.gone]
    going = any(_end(pod) is None and not pod.gone for pod in known)
    guessed = any(pod.ended is None and pod.gone and pod.scheduled for pod in pods)
    seconds = devices * sum(_seconds(pod, now) for pod in known)
    vanished = attempt.workers - len(known) if attempt.created else 0
    vanished_seconds, vanished_time = attempt.vanished_device_seconds, attempt.vanished_time
    if vanished > attempt.vanished_workers:
        vanished_time = attempt.accounted_until or attempt.start_time
        then = devices * sum(_seconds(pod, vanished_time) for pod in known)
        vanished_seconds = max(vanished_seconds, attempt.device_seconds - then)
    return attempt.replace(
        device_seconds=max(attempt.device_seconds, seconds + vanished_seconds),
        accounted_until=now if going else attempt.accounted_until,
        vanished_workers=max(vanished, attempt.vanished_workers),
        vanished_device_seconds=vanished_seconds,
        vanished_time=vanished_time,
        estimated=attempt.estimated or vanished > 0 or guessed,
    )


def settle(attempt: Attempt, pods: list[Pod]) -> Attempt:
    """Every pod of the attempt is over: its sums are final.

    Where all ends were seen the total is the plain sum, whatever a clock of ours that runs ahead of
    the nodes' had charged meanwhile.
    """
    own = [pod for pod in pods if pod.attempt == attempt.number]
    unseen = [pod for pod in own if pod.ended is None and pod.scheduled]
    exact = attempt.vanished_workers == 0 and not unseen
    if exact and own:
        seconds = sum(_seconds(pod, pod.ended.finished) for pod in own if pod.ended)
        total = attempt.devices_per_worker * seconds
        if not attempt.created and total < attempt.device_seconds:
            # How many pods a gang had that was never whole is not known: one may be missing here.
            total, attempt = attempt.device_seconds, attempt.replace(estimated=True)
        attempt = attempt.replace(device_seconds=total)
    parts = attempt.productive_device_seconds + attempt.lost_device_seconds
    return attempt.replace(
        settled=True,
        estimated=attempt.estimated or bool(unseen),
        device_seconds=max(attempt.device_seconds, parts),
    )


def split(attempt: Attempt, ledger: StepLedger | None) -> Attempt:
    """Divide an attempt's time by its ledger of steps; what is left is overhead."""
    if ledger is None:
        return attempt
    devices = attempt.workers * attempt.devices_per_worker
    productive = min(attempt.device_seconds, int(ledger.productive_seconds * devices))
    left = attempt.device_seconds - productive
    return attempt.replace(
        productive_device_seconds=productive,
        lost_device_seconds=min(left, round(ledger.redone_seconds * devices)),
        first_step=ledger.first_step,
        last_step=ledger.highest_step,
    )


def correct(
    status: FineTuneJobStatus, records: list[AttemptRecord], now: datetime
) -> FineTuneJobStatus:
    """Mend estimates of earlier attempts by what these wrote about themselves, once each.

    The record's time is a proof of life of its gang that the operator did not see. It is worker
    0's; the mark `estimated` stays, for the others' ends are taken to be the same. A time to come
    is no proof of anything.
    """
    known = {record.attempt: record for record in records}
    mended = [
        _corrected(attempt, known[attempt.number], now)
        if attempt.settled
        and attempt.estimated
        and not attempt.corrected
        and attempt.number in known
        else attempt
        for attempt in status.attempts
    ]
    return status.replace(attempts=mended)


def _corrected(attempt: Attempt, record: AttemptRecord, now: datetime) -> Attempt:
    told = min(record.update_time, now)
    last = attempt.vanished_time or told
    unseen = max(0, int((told - last).total_seconds()))
    more = unseen * attempt.vanished_workers * attempt.devices_per_worker
    attempt = attempt.replace(device_seconds=attempt.device_seconds + more, corrected=True)
    return split(attempt, record.ledger)


KEPT = 10  # attempts in the list


def total(status: FineTuneJobStatus) -> Usage:
    """Sums over all attempts; the three parts add up to the whole."""
    attempts = [*status.attempts, *([status.folded_attempts] if status.folded_attempts else [])]
    seconds = sum(a.device_seconds for a in attempts)
    productive = sum(a.productive_device_seconds for a in attempts)
    lost = sum(a.lost_device_seconds for a in attempts)
    return Usage(
        device_seconds=seconds,
        productive_device_seconds=productive,
        lost_device_seconds=lost,
        overhead_device_seconds=seconds - productive - lost,
        gpu_hours=f"{seconds / 3600:.2f}",
        estimated=any(a.estimated for a in attempts),
    )


def fold(status: FineTuneJobStatus, most: int) -> FineTuneJobStatus:
    """Keep the newest attempts; the older ones become one sum."""
    if len(status.attempts) <= most:
        return status
    cut = len(status.attempts) - most
    old, kept = status.attempts[:cut], status.attempts[cut:]
    parts = [*([status.folded_attempts] if status.folded_attempts else []), *old]
    folded = parts[-1].replace(
        start_time=parts[0].start_time,
        device_seconds=sum(p.device_seconds for p in parts),
        productive_device_seconds=sum(p.productive_device_seconds for p in parts),
        lost_device_seconds=sum(p.lost_device_seconds for p in parts),
        active_seconds=sum(p.active_seconds for p in parts),
        estimated=any(p.estimated for p in parts),
        last_step=max((p.last_step or 0 for p in parts), default=0),
    )
    return status.replace(attempts=kept, folded_attempts=folded)
