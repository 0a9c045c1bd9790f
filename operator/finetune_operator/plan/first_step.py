"""The policy for a complete gang that loses a worker before it has finished a step.

It has nothing to save, so the end of the lost worker is not awaited. On a dead node that would take
minutes, in which the others hold their devices. The next attempt still waits for that end.
"""

from finetune_api.status import Attempt
from finetune_operator.plan import nodes
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.outcomes import ENDINGS, Cause
from finetune_operator.plan.verdict import Verdict, from_lost_worker


def verdict(world: World, attempt: Attempt, gang: list[Pod]) -> Verdict | None:
    """Return how a gang ended of which a worker is asked to stop, or None if it may have a step.

    A node that does not answer may be back soon. Its pods are deleted if it is not.
    """
    asked = [pod for pod in gang if pod.asked_to_stop and not pod.over(world.now)]
    if not asked or not _is_proved(world, attempt, gang):
        return None
    if lost := next((pod for pod in asked if pod.silent_since), None):
        failed = [pod for pod in gang if pod.ended and pod.ended.exit_code]
        return from_lost_worker(lost, failed[0] if failed else None)
    pod, ending = asked[0], ENDINGS[Cause.PREEMPTED]
    why = f"its pod {nodes.place(pod)} was asked to stop before the first step"
    text = f"worker {pod.index}: {why}"[:1024]
    return Verdict(ending, ending.reason or "", text, worker=pod.index, node=pod.node)


def _is_proved(world: World, attempt: Attempt, gang: list[Pod]) -> bool:
    """Return whether a current report shows that no step of this attempt is finished.

    Without a current report, the gang may have trained for hours. If the node of worker 0 does not
    answer, its last report is current enough: without worker 0 there are no steps.
    """
    if world.report is None or world.report.progress or attempt.last_step is not None:
        return False
    first = next((pod for pod in gang if pod.index == 0), None)
    return not world.silent or bool(first and first.silent_since)
