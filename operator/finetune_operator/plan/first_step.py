"""The policy for a complete gang that loses a worker before it has finished a step.

It has nothing to save, so the end of the lost worker is not awaited. On a dead node that would take
minutes, in which the others hold their devices. The next attempt still waits for that end.
"""

from dataclasses import replace

from finetune_api.status import Attempt
from finetune_operator.plan import nodes
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.outcomes import ENDINGS, Cause
from finetune_operator.plan.verdict import Verdict, from_lost_worker

_SHORTEST = 3.0  # s from the start of a gang to its first step, at least: libraries are imported


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


def explained(found: Verdict, world: World, attempt: Attempt, gang: list[Pod]) -> Verdict:
    """Return a verdict on a worker that was killed, which says so if it had nothing to save."""
    ends = [pod.ended for pod in gang if pod.ended and pod.index == found.worker]
    if found.ending is not ENDINGS[Cause.KILLED] or not ends or attempt.running_time is None:
        return found
    ran = (ends[0].finished - attempt.running_time).total_seconds()
    if attempt.last_step is None and (ran < _SHORTEST or _is_proved(world, attempt, gang)):
        text = "it was asked to stop and was killed before the first step; nothing is lost"
        return replace(found, message=f"worker {found.worker}: {text}")
    return found


def _is_proved(world: World, attempt: Attempt, gang: list[Pod]) -> bool:
    """Return whether a current report shows that no step of this attempt is finished.

    Without a current report, the gang may have trained for hours. If the node of worker 0 does not
    answer, its last report is current enough: without worker 0 there are no steps.
    """
    if world.report is None or world.report.progress or attempt.last_step is not None:
        return False
    first = next((pod for pod in gang if pod.index == 0), None)
    return not world.silent or bool(first and first.silent_since)
