"""A gang of which some workers hold a node and others find none lets go as a whole.

Two jobs that each hold half of the devices would otherwise wait for each other for ever.
"""

from datetime import timedelta

from finetune_api.spec import RunPolicy
from finetune_operator.plan.observe import Pod
from finetune_operator.plan.stops import GANG_INCOMPLETE, Stop


def asks(policy: RunPolicy, gang: list[Pod]) -> list[Stop]:
    """Not before some have waited on their nodes for gangStartTimeoutSeconds."""
    bound = [pod.scheduled for pod in gang if pod.scheduled and not pod.gone]
    stuck = [pod for pod in gang if pod.unschedulable and not pod.gone]
    if not bound or not stuck:
        return []
    limit = policy.gang_start_timeout_seconds
    text = (
        f"{len(bound)} of {len(gang)} workers held a node for runPolicy.gangStartTimeoutSeconds "
        f"({limit} s) while {stuck[0].name} found none: {stuck[0].unschedulable}"
    )
    return [Stop(GANG_INCOMPLETE, text, min(bound) + timedelta(seconds=limit))]
