"""Deadlines of a run: start, active, progress. Each says when it strikes; none looks at a clock."""

from datetime import timedelta

from finetune_api.spec import RunPolicy
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_api.text import duration
from finetune_operator.plan.describe import waiting
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.stops import ACTIVE_DEADLINE, HANG, START_DEADLINE, Stop

# The supervisor in the pod judges first; only one that is stuck itself is left for us.
_PROGRESS_MARGIN = 60


def start(policy: RunPolicy, attempt: Attempt, gang: list[Pod]) -> list[Stop]:
    """From "all pods exist and none is gated" until all run."""
    limit, since = policy.start_deadline_seconds, attempt.schedulable_time
    if limit is None or since is None or attempt.running_time is not None:
        return []
    _, why = waiting(gang) or ("", "not all workers run")
    text = f"not started within runPolicy.startDeadlineSeconds ({limit} s): {why}"
    return [Stop(START_DEADLINE, text, since + timedelta(seconds=limit))]


def active(world: World, status: FineTuneJobStatus, attempt: Attempt) -> list[Stop]:
    """Time in which whole gangs ran, over all attempts; an export is not cut off any more."""
    limit = world.job.spec.run_policy.active_deadline_seconds
    since = attempt.running_time
    if limit is None or since is None or _trained(world, status, attempt):
        return []
    before = sum(a.active_seconds for a in status.attempts if a.number != attempt.number)
    before += status.folded_attempts.active_seconds if status.folded_attempts else 0
    text = f"ran for runPolicy.activeDeadlineSeconds ({duration(limit)}); raise it in a new job"
    return [Stop(ACTIVE_DEADLINE, text, since + timedelta(seconds=limit - before))]


def _trained(world: World, status: FineTuneJobStatus, attempt: Attempt) -> bool:
    """All steps are made. The other workers end then; one that is alone only says so."""
    stage = world.report.stage if world.report else status.stage
    ends = (pod.ended for pod in world.gang(attempt.number))
    return stage == "Exporting" or any(end and end.exit_code == 0 for end in ends)


def progress(policy: RunPolicy, world: World) -> list[Stop]:
    """A received report says that nothing moves, and the supervisor does not act on it.

    A report that cannot be had is never a reason: a closed network policy would look the same.
    """
    limit = policy.progress_deadline_seconds
    if world.report is None or world.silent:
        return []
    age = world.report.activity_age_seconds
    text = f"nothing was finished for {duration(age)} (runPolicy.progressDeadlineSeconds {limit})"
    left = limit + _PROGRESS_MARGIN - age
    if left < 0:
        return [Stop(HANG, text)]
    # By then a newer report has come, and it decides.
    return [Stop(HANG, text, world.now + timedelta(seconds=int(left) + 1))]
