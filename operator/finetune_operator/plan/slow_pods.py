"""Pods that are bound to a node and do not run, without a reason in their status.

A kubelet that cannot mount a volume, or that pulls a large image, describes it in events only.
`pod_events.py` reads those of the pods that are slow; what they say is part of the world.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_operator.plan.observe import Pod, World

SLOW_AFTER = 20.0
"""Seconds from its binding after which a pod that does not run is slow."""
_RECHECK = 30.0


@dataclass(frozen=True)
class Notice:
    """Why a pod does not run, as one of its events says."""

    reason: str  # of the event; empty if it reports no problem
    message: str


def slow_pods(world: World) -> list[Pod]:
    """Return the pods of an unfinished job that are slow, the lowest indices first."""
    status = world.job.status
    if status.finished or world.job.deleting:
        return []
    found = [pod for pod in world.pods if _starts(pod) and _is_current(pod, status.attempt)]
    late = [pod for pod in found if _slow_at(pod) <= world.now]
    return sorted(late, key=lambda pod: pod.index)


def seconds_until_slow(pods: Iterable[Pod], now: datetime) -> float | None:
    """Return when to plan again because a pod becomes slow, or may still be slow then."""
    waits = [(_slow_at(pod) - now).total_seconds() for pod in pods if _starts(pod)]
    return min((wait if wait > 0 else _RECHECK for wait in waits), default=None)


def with_notices(world: World, known: Mapping[str, Notice]) -> World:
    """Return the world in which slow pods say why they do not run; `known` is by uid."""
    slow = {pod.uid for pod in slow_pods(world)}
    if not slow:
        return world
    pods = (_explained(pod, known.get(pod.uid)) if pod.uid in slow else pod for pod in world.pods)
    return replace(world, pods=tuple(pods))


def _starts(pod: Pod) -> bool:
    ends = pod.ended or pod.failure or pod.gone or pod.deletion or pod.finished
    return bool(pod.scheduled) and not (pod.running or pod.waiting or pod.silent_since or ends)


def _is_current(pod: Pod, attempt: int | None) -> bool:
    return pod.role == "prepare" if attempt is None else pod.attempt == attempt


def _slow_at(pod: Pod) -> datetime:
    assert pod.scheduled is not None
    return pod.scheduled + timedelta(seconds=SLOW_AFTER)


def _explained(pod: Pod, notice: Notice | None) -> Pod:
    if notice:
        return replace(pod, notice=(notice.reason, notice.message))
    if pod.sandbox is None:
        text = "its node has not reported anything about it"
    elif pod.sandbox:
        text = "its image is being pulled, or an init container runs"
    else:
        text = "its volumes are not mounted, or its network is not set up"
    return replace(pod, notice=("", text))
