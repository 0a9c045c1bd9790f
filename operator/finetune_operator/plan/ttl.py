"""A finished job is deleted some time after its end; what lies on storage stays."""

from datetime import timedelta

from finetune_operator.plan.observe import World


def seconds_left(world: World) -> float | None:
    """Until the job is to be deleted, 0 or less when it is due; None: never."""
    limit = world.job.spec.run_policy.ttl_seconds_after_finished
    ended = world.job.status.completion_time
    if limit is None or ended is None:
        return None
    return (ended + timedelta(seconds=limit) - world.now).total_seconds()
