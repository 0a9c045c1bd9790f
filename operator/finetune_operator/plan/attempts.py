"""The newest attempt in the status, and how reports and pods bring it up to date."""

from finetune_api.progress import Progress
from finetune_api.run import Report, Result
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.plan import corrections, usage
from finetune_operator.plan.observe import Pod, World, termination_result
from finetune_operator.plan.outcomes import RESTARTED


def current(status: FineTuneJobStatus) -> Attempt:
    """Return the newest attempt. A job has one from its first commit on."""
    return status.attempts[-1]


def replace_current(status: FineTuneJobStatus, attempt: Attempt) -> FineTuneJobStatus:
    """Return the status with this as its newest attempt, and with the usage that follows."""
    status = status.replace(attempts=[*status.attempts[:-1], attempt])
    return status.replace(usage=usage.total(status))


def refresh(world: World, gang: list[Pod]) -> FineTuneJobStatus:
    """Return the status, updated from the pods of the newest attempt and worker 0's report."""
    # The result of worker 0 is newer than any report.
    report = termination_result(gang) or world.report
    status = merge_report(world.job.status, report)
    if world.report:
        status = corrections.by_records(status, world.report.earlier_attempts, world.now)
    # A pod that was created again, because its gang was not complete, has a cost of its own.
    workers = [p for p in world.pods if p.role == "worker" and p.attempt == status.attempt]
    attempt = usage.account(current(status), workers, world.now)
    attempt = usage.split(attempt, report.ledger if report else None)
    if status.latest_checkpoint:
        attempt = attempt.replace(checkpoint_step=status.latest_checkpoint.step)
    return replace_current(status, attempt)


def merge_report(status: FineTuneJobStatus, report: Report | Result | None) -> FineTuneJobStatus:
    """Return the status with the progress, evaluation and checkpoints that worker 0 reported."""
    if report is None:
        return status
    # An empty list means that the worker has not listed the storage yet.
    checkpoints = report.checkpoints or status.checkpoints
    verified = [checkpoint for checkpoint in checkpoints if checkpoint.verified]
    newest = max(verified, key=lambda c: c.step, default=status.latest_checkpoint)
    status = status.replace(
        progress=report.progress or status.progress,
        evaluation=report.evaluation or status.evaluation,
        checkpoints=checkpoints,
        latest_checkpoint=newest,
    )
    if newest and status.last_failure_step is not None and newest.step > status.last_failure_step:
        # The gang got past the step that failed, so the failures before it count no more.
        status = status.replace(counted_restarts=0, last_failure_step=None)
    return status


def restarted(status: FineTuneJobStatus) -> list[Attempt]:
    """Return the listed attempts that were followed by a restart, or will be, the oldest first."""
    ended = status.attempts if status.next_attempt_time else status.attempts[:-1]
    return [attempt for attempt in ended if attempt.outcome in RESTARTED]


def progress_of_next(status: FineTuneJobStatus) -> Progress | None:
    """Return the progress that the next attempt begins with, which its first report replaces."""
    progress, newest = status.progress, status.latest_checkpoint
    step = newest.step if newest else 0
    if progress is None or progress.step <= step:
        return progress
    return Progress(
        step=step,
        total_steps=progress.total_steps,
        skipped_steps=progress.skipped_steps,
        last_update_time=progress.last_update_time,
    )


def highest_step(status: FineTuneJobStatus, *, before: int | None = None) -> int:
    """Return the highest step that any attempt finished, or any attempt before that number."""
    known = [*status.attempts, *([status.folded_attempts] if status.folded_attempts else [])]
    steps = [a.last_step or 0 for a in known if before is None or a.number < before]
    return max(steps, default=0)
