"""The export, in which worker 0 is alone: the other workers have ended with 0 before it begins.

Their pods may be collected before an operator that was away could observe how they ended.
"""

from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.observe import Pod, World


def is_known(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> bool:
    """Return whether training is done: a worker exited with 0, or worker 0 is exporting."""
    stage = world.report.stage if world.report else status.stage
    return stage == "Exporting" or any(pod.ended and pod.ended.exit_code == 0 for pod in gang)


def relevant(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> list[Pod]:
    """Return the workers whose state matters.

    The others have trained to the end, even if their nodes cannot report any more how they ended.
    """
    if not is_known(world, status, gang):
        return gang
    return [pod for pod in gang if pod.index == 0 or not _is_uncertain(pod)]


def _is_uncertain(pod: Pod) -> bool:
    if pod.ended:
        return pod.ended.unknown
    return pod.finished or pod.asked_to_stop or pod.silent_since is not None


def overlooked(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> set[int]:
    """Return the workers whose pods may be missing because they ended before the export."""
    others = set(range(1, status.attempts[-1].workers))
    if is_known(world, status, gang):
        return others
    if not _is_possible(world, gang):
        return set()
    observed = (pod for pod in gang if not pod.gone or pod.ended or pod.end_seen)
    return others - {pod.index for pod in observed}


def _is_possible(world: World, gang: list[Pod]) -> bool:
    """Return whether the first report of worker 0 will soon show whether it exports.

    That is so directly after a start of the operator. A report arrives, or worker 0 becomes silent.
    """
    first = next((pod for pod in gang if pod.index == 0), None)
    polled = first and first.running and not (first.silent_since or first.asked_to_stop)
    return bool(polled) and world.report is None and not world.silent
