"""The policy for suspension.

The gang saves, every pod is deleted, and the next attempt waits until the user resumes the job.
"""

from finetune_api import reasons
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan import gang_text, nodes
from finetune_operator.plan.decision import RECHECK, Decision, Delete
from finetune_operator.plan.describe import Situation, describe
from finetune_operator.plan.observe import Job, World
from finetune_operator.plan.stops import StopRequest


def stop_requests(job: Job) -> list[StopRequest]:
    """Request a stop if the user suspended the job."""
    return [StopRequest(reasons.SUSPENDED, "spec.suspend is true")] if job.spec.suspend else []


def hold(world: World, status: FineTuneJobStatus) -> Decision:
    """Delete every pod of a suspended job without a live gang, then wait for the user.

    The condition `Suspended` is True only when no pod of the job exists, because that is when the
    workers may be edited.
    """
    left = [pod for pod in world.pods if not pod.gone]
    if not left:
        text = "no pod is left; set spec.suspend to false to resume"
        if status.attempt and status.latest_checkpoint:
            text += f" from the checkpoint of step {status.latest_checkpoint.step}"
        held = describe(world, status, Situation("Suspended", reasons.SUSPENDED, text))
        # A cache may have missed a pod, so this is repeated from a live read.
        return Decision(held, commits=status.phase != "Suspended")
    deletions = [Delete(pod.name, pod.uid) for pod in left if pod.needs_deletion(world.now)]
    # A pod on a lost node stays until the node is back or is removed, so name the node.
    text = f"waiting for {gang_text.counted(len(left), 'pod')} to be deleted: {nodes.places(left)}"
    situation = Situation("Suspending", reasons.SUSPENDED, text)
    return Decision(describe(world, status, situation), delete=deletions, requeue_after=RECHECK)
