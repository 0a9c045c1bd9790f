"""A gang of which some workers hold a node and others get none lets go as a whole.

Two jobs that each hold half of the devices would otherwise wait for each other for ever.
"""

from datetime import timedelta

from finetune_api.spec import RunPolicy
from finetune_api.status import Attempt, Condition
from finetune_operator.plan.observe import Pod
from finetune_operator.plan.stops import GANG_INCOMPLETE, Stop


def asks(
    policy: RunPolicy, attempt: Attempt, gang: list[Pod], refused: Condition | None
) -> list[Stop]:
    """Not before some have waited on their nodes for gangStartTimeoutSeconds.

    `refused`: why the API server takes no more pods, for example a quota that was used up midway.
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
    return [Stop(GANG_INCOMPLETE, text, min(bound) + timedelta(seconds=limit))]
