"""The end of a job, and what remains of it afterwards.

The outcome of a finished job never changes. Its pods are deleted as `runPolicy.cleanPodPolicy`
says, and the job itself after `runPolicy.ttlSecondsAfterFinished`. Its storage is never deleted.
"""

from datetime import timedelta

from finetune_api import reasons
from finetune_api.progress import Output
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.decision import Decision, Delete
from finetune_operator.plan.describe import Situation, describe
from finetune_operator.plan.observe import Pod, World


def succeed(world: World, status: FineTuneJobStatus, output: Output) -> Decision:
    """End a job whose model folder is on storage and was loaded back."""
    status = status.replace(output=output, completion_time=world.now, next_attempt_time=None)
    situation = Situation("Succeeded", reasons.COMPLETED, f"the model is at {output.location}")
    return Decision(describe(world, status, situation), commits=True)


def fail(world: World, status: FineTuneJobStatus, reason: str, message: str) -> Decision:
    """End a job for which nothing more is tried."""
    status = status.replace(completion_time=world.now, next_attempt_time=None)
    situation = Situation("Failed", reason[:64], message[:1024])
    return Decision(describe(world, status, situation), commits=True)


def clean_up(world: World) -> Decision:
    """Delete what a finished job no longer needs."""
    status, left = world.job.status, _seconds_to_live(world)
    if left is not None and left <= 0:
        return Decision(status, delete_job=True)
    deletions = [Delete(pod.name, pod.uid) for pod in world.pods if _is_removed(world, pod)]
    return Decision(status, delete=deletions, requeue_after=left)


def _seconds_to_live(world: World) -> float | None:
    """Return the seconds until the job is due for deletion, or None if it never is."""
    limit = world.job.spec.run_policy.ttl_seconds_after_finished
    ended = world.job.status.completion_time
    if limit is None or ended is None:
        return None
    return (ended + timedelta(seconds=limit) - world.now).total_seconds()


def _is_removed(world: World, pod: Pod) -> bool:
    if pod.gone or pod.deletion:
        return False
    policy = world.job.spec.run_policy.clean_pod_policy
    if policy == "All":
        return True
    if pod.over(world.now):
        return False
    # Nothing uses a trainer that still runs after the job has finished, so every policy removes it.
    return policy == "Running" or pod.ended is None
