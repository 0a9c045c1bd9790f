"""What messages say about pods and their nodes, as far as the conditions of the pods show it."""

from collections.abc import Sequence
from datetime import datetime

from finetune_operator.plan.observe import Pod


def clock(moment: datetime) -> str:
    """Return a moment as messages show it."""
    return f"{moment:%H:%M:%S} UTC"


def place(pod: Pod) -> str:
    """Return a pod's name and its node, if it has one, and since when that does not answer."""
    if pod.silent_since:
        return f"{pod.name} on {silence(pod)}"
    return f"{pod.name} on node {pod.node}" if pod.node else pod.name


def silence(pod: Pod) -> str | None:
    """Return a clause that names the node of a pod if it does not answer, else None."""
    if pod.silent_since is None:
        return None
    node = f"node {pod.node}" if pod.node else "a node"
    return f"{node}, which does not answer since {clock(pod.silent_since)}"


def places(pods: Sequence[Pod]) -> str:
    """Return the place of the first of some pods, and the number of the others.

    Pods on nodes that do not answer come first, because nothing else is waited for as long.
    """
    first = min(pods, key=lambda pod: (pod.silent_since is None, pod.index))
    others = len(pods) - 1
    return f"{place(first)} and {others} more" if others else place(first)
