"""The entry point of the planner, which selects a policy by where the job is in its life."""

from finetune_operator.plan import corrections, finished, gang, next_attempt, prepare, suspend
from finetune_operator.plan.decision import Decision
from finetune_operator.plan.observe import Job, World
from finetune_operator.settings import Settings


def plan(world: World, settings: Settings) -> Decision:
    """Decide what to do about one job; equal worlds give equal decisions."""
    if world.job.deleting:
        # Kubernetes deletes the pods through their owner references.
        return Decision(world.job.status)
    if world.job.status.finished:
        return finished.clean_up(world)
    world = corrections.by_exact_ends(world)
    status = world.job.status
    if only_prepares(world.job):
        return prepare.decide(world, settings)
    if not status.attempts:
        return suspend.hold(world, prepare.without_pods(world))
    if status.attempts[-1].outcome is None:
        return gang.decide(world, settings)
    return next_attempt.decide(world, settings)


def only_prepares(job: Job) -> bool:
    """Return whether a job is before its first commit, so that no live read of its pods is needed.

    A gang has pods only after its commit. A prepare pod that a cache missed cannot be created
    twice, because its name is taken, and the end of one that ended does not change any more.
    """
    return not (job.status.attempts or job.status.finished or job.spec.suspend)
