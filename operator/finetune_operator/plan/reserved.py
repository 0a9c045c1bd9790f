"""The pods of a committed gang that are about to be created, as other jobs must count them."""

from finetune_operator.plan import attempts
from finetune_operator.plan import pods as render
from finetune_operator.plan.observe import Job, Pod
from finetune_operator.plan.quota import Demand
from finetune_operator.plan.template import UnrenderableError


def about_to_exist(job: Job, pods: tuple[Pod, ...], before: Job) -> Demand | None:
    """Return the missing pods of a job's gang if they come before the gang of another job.

    Gangs that are committed come in the order of their commits. A gang that is refused does not
    keep others waiting.
    """
    status = job.status
    if not status.attempts or job.deleting or status.finished:
        return None
    attempt = attempts.current(status)
    if attempt.outcome or attempt.stop_reason or attempt.created:
        return None
    if any(c.type == "Accepted" and c.status == "False" for c in status.conditions):
        return None
    if before.status.attempts:
        other = attempts.current(before.status)
        mine, its = (other.start_time, before.uid), (attempt.start_time, job.uid)
        if other.outcome is None and mine < its:
            return None
    gang = {p.index for p in pods if p.attempt == attempt.number and not p.gone}
    missing = attempt.workers - len(gang)
    if missing <= 0:
        return None
    try:
        (pod,) = render.worker_pods(job, 0, [0])
    except UnrenderableError:
        return None
    return Demand(pod, missing)
