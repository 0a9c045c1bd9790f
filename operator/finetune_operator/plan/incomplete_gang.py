"""The policy that releases a gang of which some workers hold a node and others find none.

Otherwise two jobs that each hold half of the devices would wait for each other for ever.
"""

from datetime import timedelta

from finetune_api import reasons
from finetune_api.spec import RunPolicy
from finetune_api.status import Attempt, Condition
from finetune_operator.plan.observe import Pod
from finetune_operator.plan.stops import StopRequest


def stop_requests(
    policy: RunPolicy, attempt: Attempt, gang: list[Pod], refused: Condition | None
) -> list[StopRequest]:
    """Request a stop once the first worker has held its node for gangStartTimeoutSeconds.

    `refused` is the condition that says why the API server admits no more pods, for example because
    a quota was used up after some of them had been created.
    """
    bound = [pod.scheduled for pod in gang if pod.scheduled and not pod.gone]
    unplaced = next((pod for pod in gang if pod.unschedulable and not pod.gone), None)
    if unplaced:
        why = f"{unplaced.name} found none: {unplaced.unschedulable}"
    elif refused and not attempt.created:
        why = f"the others could not be created: {refused.message}"
    else:
        return []
    if not bound:
        return []
    limit = policy.gang_start_timeout_seconds
    text = (
        f"{len(bound)} of {attempt.workers} workers held a node for "
        f"runPolicy.gangStartTimeoutSeconds ({limit} s) while {why}"
    )
    return [StopRequest(reasons.GANG_INCOMPLETE, text, min(bound) + timedelta(seconds=limit))]
