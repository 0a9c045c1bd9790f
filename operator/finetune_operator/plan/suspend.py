"""Suspension: the gang saves and goes, no pod is left, and the next attempt waits for the user."""

from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.decision import RECHECK, Decision, Delete
from finetune_operator.plan.describe import Situation, describe
from finetune_operator.plan.observe import Job, World
from finetune_operator.plan.stops import SUSPENDED, Stop


def asks(job: Job) -> list[Stop]:
    """The user's wish is the first that counts."""
    return [Stop(SUSPENDED, "spec.suspend is true")] if job.spec.suspend else []


def hold(world: World, status: FineTuneJobStatus) -> Decision:
    """No gang is left to wait for: remove what still exists, then rest.

    `Suspended` is True only when no pod of the job exists, so that workers may be edited then.
    """
    left = [pod for pod in world.pods if not pod.gone]
    if not left:
        text = "no pod is left; set spec.suspend to false to go on"
        if status.attempt and status.latest_checkpoint:
            text += f" from the checkpoint of step {status.latest_checkpoint.step}"
        rests = describe(world, status, Situation("Suspended", "Suspended", text))
        # A cache that missed a pod must not say so: made again from a live read.
        return Decision(rests, commits=status.phase != "Suspended")
    doomed = [Delete(pod.name, pod.uid) for pod in left if pod.undeleted(world.now)]
    # A pod on a node that is lost stays until the node is back or removed: name it.
    where = f" on node {left[0].node}" if left[0].node else ""
    text = f"waiting for {len(left)} pods to go, first {left[0].name}{where}"
    situation = Situation("Suspending", "Suspended", text)
    return Decision(describe(world, status, situation), delete=doomed, requeue_after=RECHECK)
