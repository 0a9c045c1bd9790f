"""What stays of a finished job: its pods by cleanPodPolicy, itself by its time to live."""

from finetune_operator.plan import ttl
from finetune_operator.plan.decision import Decision, Delete
from finetune_operator.plan.observe import Pod, World


def tidy(world: World) -> Decision:
    """The outcome is written; only pods and the job itself may still go."""
    status, left = world.job.status, ttl.seconds_left(world)
    if left is not None and left <= 0:
        return Decision(status, delete_job=True)
    doomed = [pod for pod in world.pods if _goes(world, pod)]
    deletes = [Delete(pod.name, pod.uid) for pod in doomed]
    return Decision(status, delete=deletes, requeue_after=left)


def _goes(world: World, pod: Pod) -> bool:
    if pod.gone or pod.deletion:
        return False
    policy = world.job.spec.run_policy.clean_pod_policy
    if policy == "All":
        return True
    if pod.over(world.now):
        return False
    # Its trainer has not even ended: a stray that nobody waits for, whatever the policy says.
    return policy == "Running" or pod.ended is None
