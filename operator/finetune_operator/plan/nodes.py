"""What messages say about the node of a pod, as far as the conditions of the pod show it."""

from datetime import datetime

from finetune_operator.plan.observe import Pod

_CLOCK = "%H:%M:%S UTC"


def clock(moment: datetime) -> str:
    """Return a moment as messages show it."""
    return f"{moment:{_CLOCK}}"


def place(pod: Pod) -> str:
    """Return a pod's name and its node, if it has one."""
    return f"{pod.name} on node {pod.node}" if pod.node else pod.name


def silence(pod: Pod) -> str | None:
    """Return a clause that names the node of a pod if it does not answer, else None."""
    if pod.silent_since is None:
        return None
    return f"node {pod.node}, which does not answer since {clock(pod.silent_since)}"
