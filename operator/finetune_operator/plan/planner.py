"""From what is observed to what is done: the story of a job's life."""

from finetune_operator.plan import cleanup, gang, next_attempt, prepare, suspend
from finetune_operator.plan.decision import Decision
from finetune_operator.plan.observe import Job, World
from finetune_operator.settings import Settings


def plan(world: World, settings: Settings) -> Decision:
    """Decide what to do about one job; pure, and the same for the same world."""
    status = world.job.status
    if world.job.deleting:
        return Decision(status)  # owner references clean up
    if status.finished:
        return cleanup.tidy(world)
    if only_prepares(world.job):
        return prepare.preparing(world, settings)
    if not status.attempts:
        return suspend.hold(world, status)
    if status.attempts[-1].outcome is None:
        return gang.running(world, settings)
    return next_attempt.between(world, settings)


def only_prepares(job: Job) -> bool:
    """Whether a job is before its first commit, and wants to get there: its pods need no live read.

    A gang has pods only after its commit. A prepare pod that a cache has missed cannot be made
    twice, for its name is taken; one that ended is known by how it ended, and stays so.
    """
    return not (job.status.attempts or job.status.finished or job.spec.suspend)
