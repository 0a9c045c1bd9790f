"""The newest attempt in the status: brought up to date, replaced, asked for its furthest step."""

from finetune_api.run import Report, Result
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.plan import usage
from finetune_operator.plan.observe import Pod, World, last_words
from finetune_operator.plan.progress import merge


def current(status: FineTuneJobStatus) -> Attempt:
    """The newest one; there is one from the first commit on."""
    return status.attempts[-1]


def observed(world: World, gang: list[Pod]) -> FineTuneJobStatus:
    """The status with what the pods of the newest attempt and its report say now."""
    status, said = world.job.status, _said(world, gang)
    status = merge(status, said)
    if world.report:
        status = usage.correct(status, world.report.earlier_attempts, world.now)
    attempt = usage.account(current(status), gang, world.now)
    attempt = usage.split(attempt, said.ledger if said else None)
    if status.latest_checkpoint:
        attempt = attempt.replace(checkpoint_step=status.latest_checkpoint.step)
    return updated(status, attempt)


def _said(world: World, gang: list[Pod]) -> Report | Result | None:
    """Worker 0's last words, else its newest report."""
    return last_words(gang) or world.report


def updated(status: FineTuneJobStatus, attempt: Attempt) -> FineTuneJobStatus:
    """The status with this as its newest attempt."""
    status = status.replace(attempts=[*status.attempts[:-1], attempt])
    return status.replace(usage=usage.total(status))


def highest_step(status: FineTuneJobStatus, *, before: int | None = None) -> int:
    """The furthest step that an attempt finished; of those before a number, if one is given."""
    known = [*status.attempts, *([status.folded_attempts] if status.folded_attempts else [])]
    steps = [a.last_step or 0 for a in known if before is None or a.number < before]
    return max(steps, default=0)
