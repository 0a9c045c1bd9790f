"""The device time of attempts: exact where ends were observed, marked as estimated elsewhere.

A pod is charged for its devices from its binding to a node until its trainer container ended. The
total of an attempt is computed from the pods each time the job is planned. A pod that vanished
before its end was observed is charged up to its last proof of life. Once an attempt is settled,
only corrections.py changes its sums.
"""

from datetime import datetime

from finetune_api.names import MAX_ATTEMPTS
from finetune_api.progress import StepLedger
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import MAX_LOST_WORKERS, Attempt, FineTuneJobStatus, Usage
from finetune_operator.plan.observe import Pod

PROOF_INTERVAL = 600.0
"""Seconds between status writes that only record that a gang is alive.

A gang that vanishes while no operator runs is charged up to the last of them.
"""
HELD_INTERVAL = 60.0
"""The same for a gang that does not train yet or any more, so that nothing else shows its cost."""
KEPT = MAX_ATTEMPTS
"""Number of attempts that the status lists; older ones are folded into one sum."""


def holds_only(status: FineTuneJobStatus) -> bool:
    """Return whether the pods of a job, if there are any, hold their devices and do not train."""
    return status.phase != "Running" or status.stage == "LoadingModel"


def new_attempt(spec: FineTuneJobSpec, number: int, now: datetime) -> Attempt:
    """Return a new attempt, with its gang's size, which the spec may change during a suspension."""
    workers = spec.workers
    return Attempt(
        number=number,
        workers=workers.replicas,
        devices_per_worker=workers.devices_per_worker,
        start_time=now,
    )


def _end(pod: Pod) -> datetime | None:
    """Return when the pod released its devices, or None if that is not known.

    A kubelet may not know the end of a container. Then it is the moment at which the operator saw
    that the pod was over.
    """
    return pod.released or pod.end_seen


def _seconds(pod: Pod, until: datetime) -> int:
    if pod.scheduled is None:
        return 0
    return seconds_between(pod.scheduled, min(until, _end(pod) or until))


def seconds_between(since: datetime, until: datetime) -> int:
    """Return the seconds, which are 0 if the clock of a node is behind that of the scheduler."""
    return max(0, int((until - since).total_seconds()))


def _proven_seconds(pod: Pod, now: datetime) -> int:
    """Return the seconds for which a pod of unknown end is proved to have held its devices.

    The clock of a node may be ahead, so a proof in the future counts as one of now.
    """
    return _seconds(pod, min(pod.proof, now)) if pod.proof else 0


def account(attempt: Attempt, pods: list[Pod], now: datetime) -> Attempt:
    """Return the attempt with its device seconds up to now."""
    devices = attempt.devices_per_worker
    # The cost of a pod that was found missing is not known: it may have been bound unobserved.
    known = [pod for pod in pods if _end(pod) or not (pod.gone or pod.finished)]
    unknown = [pod for pod in pods if pod not in known]
    alive = any(_end(pod) is None for pod in known)
    unobserved = any(_is_estimated(pod) for pod in pods)
    seconds = devices * sum(_seconds(pod, now) for pod in known)
    vanished = attempt.workers - len({pod.index for pod in known}) if attempt.created else 0
    vanished_seconds, vanished_time = attempt.vanished_device_seconds, attempt.vanished_time
    if vanished > attempt.vanished_workers:
        since = attempt.accounted_until or attempt.start_time
        then = devices * sum(_seconds(pod, since) for pod in known)
        vanished_seconds = max(vanished_seconds, attempt.device_seconds - then)
        vanished_time = max([since, *(min(pod.proof, now) for pod in unknown if pod.proof)])
    proven = devices * sum(_proven_seconds(pod, now) for pod in unknown)
    vanished_seconds = max(vanished_seconds, proven)
    return attempt.replace(
        device_seconds=max(attempt.device_seconds, seconds + vanished_seconds),
        accounted_until=now if alive else attempt.accounted_until,
        vanished_workers=max(vanished, attempt.vanished_workers),
        vanished_device_seconds=vanished_seconds,
        vanished_time=vanished_time,
        estimated=attempt.estimated or vanished > 0 or unobserved,
    )


def _is_estimated(pod: Pod) -> bool:
    """Return whether the pod held devices and is over without an exact end."""
    over = pod.gone or pod.finished
    return over and pod.released is None and pod.scheduled is not None


def finalize(attempt: Attempt, pods: list[Pod]) -> Attempt:
    """Return the attempt with its final sums, once every pod of it is over.

    If all ends were observed, the total is their sum, even if it is less than what was charged
    before by a clock of the operator that is ahead of the nodes' clocks.
    """
    own = [pod for pod in pods if pod.attempt == attempt.number]
    unseen = [pod for pod in own if pod.released is None and pod.scheduled]
    exact = attempt.vanished_workers == 0 and not unseen
    if exact and own:
        seconds = sum(_seconds(pod, pod.released) for pod in own if pod.released)
        total = attempt.devices_per_worker * seconds
        if not attempt.created and total < attempt.device_seconds:
            # A gang that was never complete may have had pods that are not in `pods`, so the
            # larger sum is kept.
            total, attempt = attempt.device_seconds, attempt.replace(estimated=True)
        attempt = attempt.replace(device_seconds=total)
    parts = attempt.productive_device_seconds + attempt.lost_device_seconds
    lost = [pod.index for pod in unseen if not (pod.gone or pod.finished)]
    # Other workers without an exact end will never have one.
    correctable = attempt.created and len(lost) == len(unseen) <= MAX_LOST_WORKERS
    return attempt.replace(
        settled=True,
        lost_workers=lost if correctable else [],
        estimated=attempt.estimated or bool(unseen),
        device_seconds=max(attempt.device_seconds, parts),
    )


def split(attempt: Attempt, ledger: StepLedger | None) -> Attempt:
    """Return the attempt with its time split by the ledger; the remainder is overhead.

    A ledger may be older than one that was read before, and then changes nothing.
    """
    if ledger is None:
        return attempt
    devices = attempt.workers * attempt.devices_per_worker
    productive = max(
        attempt.productive_device_seconds,
        min(attempt.device_seconds, int(ledger.productive_seconds * devices)),
    )
    lost = max(attempt.lost_device_seconds, round(ledger.redone_seconds * devices))
    steps = [s for s in (attempt.last_step, ledger.highest_step) if s is not None]
    return attempt.replace(
        productive_device_seconds=productive,
        lost_device_seconds=max(0, min(attempt.device_seconds - productive, lost)),
        first_step=attempt.first_step if ledger.first_step is None else ledger.first_step,
        last_step=max(steps, default=None),
    )


def total(status: FineTuneJobStatus) -> Usage:
    """Return the sums over all attempts. The three parts add up to the total."""
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


def fold(status: FineTuneJobStatus, limit: int) -> FineTuneJobStatus:
    """Return the status with at most `limit` attempts listed; older ones become one sum."""
    if len(status.attempts) <= limit:
        return status
    cut = len(status.attempts) - limit
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
        lost_workers=[],
    )
    return status.replace(attempts=kept, folded_attempts=folded)
