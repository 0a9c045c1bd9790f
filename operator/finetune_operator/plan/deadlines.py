"""The deadlines of a run: start, active and progress.

Each policy returns the moment at which it requests a stop, so that none needs a clock.
"""

from datetime import timedelta

from finetune_api import names, reasons
from finetune_api.spec import RunPolicy
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_api.text import duration
from finetune_operator.plan import export
from finetune_operator.plan.describe import why_waiting
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.stops import StopRequest

_PROGRESS_MARGIN = 60
"""Seconds for which the supervisor in the pod may act on a hang before the operator does."""


def start(policy: RunPolicy, attempt: Attempt, gang: list[Pod]) -> list[StopRequest]:
    """Limit the time from "all pods exist and none is gated" until all workers run."""
    limit, since = policy.start_deadline_seconds, attempt.schedulable_time
    if limit is None or since is None or attempt.running_time is not None:
        return []
    _, why = why_waiting(gang) or ("", "not all workers run")
    text = f"not started within runPolicy.startDeadlineSeconds ({limit} s): {why}"
    at = since + timedelta(seconds=limit)
    return [StopRequest(reasons.START_DEADLINE_EXCEEDED, text, at)]


def active(world: World, status: FineTuneJobStatus, attempt: Attempt) -> list[StopRequest]:
    """Limit the time for which complete gangs run, over all attempts.

    A gang that has finished its training is not stopped any more, so that it can export the model.
    """
    limit = world.job.spec.run_policy.active_deadline_seconds
    since = attempt.running_time
    if limit is None or since is None or export.is_known(world, status, world.gang(attempt.number)):
        return []
    before = sum(a.active_seconds for a in status.attempts if a.number != attempt.number)
    before += status.folded_attempts.active_seconds if status.folded_attempts else 0
    text = f"ran for runPolicy.activeDeadlineSeconds ({duration(limit)}); raise it in a new job"
    at = since + timedelta(seconds=limit - before)
    return [StopRequest(reasons.ACTIVE_DEADLINE_EXCEEDED, text, at)]


def progress(policy: RunPolicy, world: World, attempt: Attempt) -> list[StopRequest]:
    """Request a stop when the newest report shows no activity and the supervisor does not act.

    A report that cannot be fetched never leads to a stop, because a network policy may block it.
    Workers that wait for a peer that has not started yet do not hang. Once all workers run, none
    should wait for another one.
    """
    limit = policy.progress_deadline_seconds
    if world.report is None or world.silent or attempt.running_time is None:
        return []
    complete_for = (world.now - attempt.running_time).total_seconds()
    age = min(world.report.activity_age_seconds, complete_for)
    text = f"no activity for {duration(age)} (runPolicy.progressDeadlineSeconds: {limit} s)"
    if waiting_for := world.report.waiting_for:
        age = complete_for
        text = (
            f"all workers have run for {duration(age)}, and worker 0 still waits for {waiting_for} "
            f"(runPolicy.progressDeadlineSeconds: {limit} s); open port {names.RENDEZVOUS_PORT} "
            "between the pods of the job"
        )
    left = limit + _PROGRESS_MARGIN - age
    if left < 0:
        return [StopRequest(reasons.HANG, text)]
    # A newer report will have been received by then, and will decide.
    return [StopRequest(reasons.HANG, text, world.now + timedelta(seconds=int(left) + 1))]
