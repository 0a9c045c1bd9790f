"""Device time of attempts: exact where ends were seen, marked where they were not.

A pod costs its devices from the moment it was bound to a node until its trainer container ended.
The total of an attempt is recomputed from the pods at every look; a pod that vanished unseen stays
charged with what it had cost by the last look before.
"""

from datetime import datetime

from finetune_api.progress import StepLedger
from finetune_api.status import Attempt, FineTuneJobStatus, Usage
from finetune_operator.plan.observe import Pod


def _seconds(pod: Pod, until: datetime) -> int:
    if pod.scheduled is None:
        return 0
    end = min(until, pod.ended.finished) if pod.ended else until
    return max(0, int((end - pod.scheduled).total_seconds()))


def account(
    attempt: Attempt, pods: list[Pod], replicas: int, devices: int, now: datetime
) -> Attempt:
    """The attempt with its device seconds up to now; `devices` is per pod."""
    # A pod whose object is gone has a known cost only when its end was seen.
    known = [pod for pod in pods if pod.ended or not pod.gone]
    going = any(pod.ended is None and not pod.gone for pod in pods)
    total = devices * sum(_seconds(pod, now) for pod in known)
    vanished = replicas - len(known) if attempt.created else 0
    vanished_seconds = attempt.vanished_device_seconds
    if vanished > attempt.vanished_workers:
        last = attempt.accounted_until or attempt.start_time
        then = devices * sum(_seconds(pod, last) for pod in known)
        vanished_seconds = max(vanished_seconds, attempt.device_seconds - then)
    return attempt.replace(
        device_seconds=max(attempt.device_seconds, total + vanished_seconds),
        accounted_until=now if going else attempt.accounted_until,
        vanished_workers=max(vanished, attempt.vanished_workers),
        vanished_device_seconds=vanished_seconds,
        estimated=attempt.estimated or vanished > 0,
    )


def split(attempt: Attempt, ledger: StepLedger | None, gang_devices: int) -> Attempt:
    """Divide an ended attempt's time by its ledger of steps; what is left is overhead."""
    if ledger is None:
        return attempt
    productive = min(attempt.device_seconds, int(ledger.productive_seconds * gang_devices))
    left = attempt.device_seconds - productive
    return attempt.replace(
        productive_device_seconds=productive,
        lost_device_seconds=min(left, round(ledger.redone_seconds * gang_devices)),
        first_step=ledger.first_step,
        last_step=ledger.highest_step,
    )


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


def fold(status: FineTuneJobStatus, most: int = 10) -> FineTuneJobStatus:
    """Keep the newest attempts; the older ones become one sum."""
    if len(status.attempts) <= most:
        return status
    old, kept = status.attempts[:-most], status.attempts[-most:]
    parts = [*([status.folded_attempts] if status.folded_attempts else []), *old]
    folded = parts[-1].replace(
        start_time=parts[0].start_time,
        device_seconds=sum(p.device_seconds for p in parts),
        productive_device_seconds=sum(p.productive_device_seconds for p in parts),
        lost_device_seconds=sum(p.lost_device_seconds for p in parts),
        estimated=any(p.estimated for p in parts),
        last_step=max((p.last_step or 0 for p in parts), default=0),
    )
    return status.replace(attempts=kept, folded_attempts=folded)
