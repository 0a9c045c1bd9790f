"""What messages say about the workers of a gang: how they ended, and which may never end."""

from collections import defaultdict
from collections.abc import Sequence

from finetune_operator.plan import nodes
from finetune_operator.plan.observe import Pod
from finetune_operator.plan.verdict import reason_and_message

_LISTED = 8  # workers that are listed by index; more are counted


def counted(number: int, noun: str) -> str:
    """Return "1 pod" or "2 pods"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def workers(indices: Sequence[int]) -> str:
    """Return "worker 3", "workers 0, 1 and 2", or how many workers of which the first is 0."""
    if len(indices) == 1:
        return f"worker {indices[0]}"
    if len(indices) > _LISTED:
        return f"{len(indices)} workers, the first of them {indices[0]},"
    *most, last = (str(index) for index in indices)
    return f"workers {', '.join(most)} and {last}"


def how_ended(gang: Sequence[Pod]) -> list[str]:
    """Return clauses on how the workers that did not succeed ended, those of one kind together."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for pod in gang:
        if pod.ended and pod.ended.unknown:
            kinds["ended when the node or its container runtime was restarted"].append(pod.index)
        elif pod.ended and pod.ended.exit_code:
            reason, _ = reason_and_message(pod)
            kinds[f"ended with exit code {pod.ended.exit_code} ({reason})"].append(pod.index)
        elif pod.failure and not pod.ended:
            kinds[f"failed ({pod.failure[0]})"].append(pod.index)
        elif pod.gone and not pod.ended:
            kinds["vanished"].append(pod.index)
    return [f"{workers(indices)} {how}" for how, indices in kinds.items()]


def silent(gang: Sequence[Pod]) -> list[Pod]:
    """Return the workers of which only a node that does not answer knows the state."""
    return [pod for pod in gang if pod.silent_since and not (pod.gone or pod.ended)]


def on_silent_nodes(gang: Sequence[Pod]) -> list[str]:
    """Return clauses on the workers whose nodes do not answer."""
    found: dict[str, list[int]] = defaultdict(list)
    for pod in silent(gang):
        found[nodes.silence(pod) or ""].append(pod.index)
    return [
        f"{workers(indices)} {'is' if len(indices) == 1 else 'are'} on {where}"
        for where, indices in found.items()
    ]
