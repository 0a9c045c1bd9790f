"""Pod statuses as a kubelet of Kubernetes 1.37 writes them.

The functions return the fields of a status that a merge patch changes. The end of a container and
the final phase of its pod are two writes, 0.1 to 1 s apart: `terminated` and then `ended`.
"""

from datetime import UTC, datetime

from finetune_api.base import Object, format_time

_READY = ("PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")
UNKNOWN = "ContainerStatusUnknown"


def _now() -> str:
    return format_time(datetime.now(UTC))


def condition(kind: str, status: str, since: str | None = None, **more: str) -> Object:
    return {"type": kind, "status": status, "lastTransitionTime": since or _now(), **more}


def scheduled(when: str | None = None) -> Object:
    """Return the condition of a pod that is bound to a node."""
    return condition("PodScheduled", "True", when)


def disrupted(reason: str, message: str, when: str | None = None) -> Object:
    """Return the condition of a pod that is evicted, drained, preempted or collected."""
    return condition("DisruptionTarget", "True", when, reason=reason, message=message)


def running(address: str = "127.0.0.1") -> Object:
    """Return the status of a pod that is bound to a node and whose container starts now."""
    now = _now()
    return {
        "phase": "Running",
        "podIP": address,
        "startTime": now,
        "conditions": [condition(kind, "True", now) for kind in ("PodScheduled", *_READY)],
        "containerStatuses": [container({"running": {"startedAt": now}})],
    }


def terminated(code: int, message: str = "", *, others: list[Object] | None = None) -> Object:
    """Return the first status after the end of the trainer container: the phase is still Running.

    `others` are the statuses of the other containers.
    """
    end = {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "startedAt": _now(),
        "finishedAt": _now(),
        "message": message,
    }
    return {
        "phase": "Running",
        "containerStatuses": [container({"terminated": end}), *(others or [])],
    }


def ended(code: int, message: str = "") -> Object:
    """Return the final status of a pod whose only container has ended."""
    return terminated(code, message) | {"phase": final_phase(code)}


def on_silent_node(status: Object, since: str) -> Object:
    """Return the status of a running pod after its node has stopped to answer.

    The node lifecycle controller only sets Ready to False. It adds no reason, and the other
    conditions and the containers remain as the kubelet last reported them.
    """
    changed = [
        condition("Ready", "False", since) if c["type"] == "Ready" else c
        for c in status["conditions"]
    ]
    return status | {"conditions": changed}


def deleted_for_taint(status: Object, since: str) -> Object:
    """Return the status of a pod that the taint eviction controller deletes from its node."""
    text = "Taint manager: deleting due to NoExecute taint"
    target = condition(
        "DisruptionTarget", "True", since, reason="DeletionByTaintManager", message=text
    )
    return status | {"conditions": [*status["conditions"], target]}


def final_phase(code: int) -> str:
    """Return the final phase of a pod whose trainer container ended with this code."""
    return "Failed" if code else "Succeeded"


def pulling(message: str = "Back-off pulling image") -> Object:
    """Return the status of a pod on a node that cannot pull its image."""
    now = _now()
    waiting = {"waiting": {"reason": "ErrImagePull", "message": message}}
    return {
        "phase": "Pending",
        "startTime": now,
        "conditions": [
            scheduled(now),
            condition("Ready", "False", now, reason="ContainersNotReady"),
        ],
        "containerStatuses": [container(waiting)],
    }


def refused(reason: str, message: str, *, waits: bool = False, ran: str | None = None) -> Object:
    """Return the final status of a pod that its node evicted or refused before a container ran.

    The containers have no status, or `waits` for their initialization. `ran` is the time from which
    the container did run: a kubelet that refuses a pod after its own restart drops all statuses.
    """
    waiting = {"waiting": {"reason": "PodInitializing"}}
    return {
        "phase": "Failed",
        "reason": reason,
        "message": message,
        "conditions": [scheduled(ran)],
        "containerStatuses": [container(waiting)] if waits else None,
    }


def unknown(
    *, ran: bool = True, condition: Object | None = None, bound: str | None = None
) -> Object:
    """Return the final status of a pod whose container the kubelet does not find any more.

    A container that never `ran` has no ID. Neither has a time of its end. The `condition` is added
    to that of a pod that is `bound` to its node since that time.
    """
    end = {
        "exitCode": 137,
        "reason": UNKNOWN,
        "message": "The container could not be located when the pod was terminated",
        "startedAt": None,
        "finishedAt": None,
    }
    status: Object = {"phase": "Failed", "containerStatuses": [container({"terminated": end}, ran)]}
    if condition:
        status["conditions"] = [scheduled(bound), condition]
    return status


def container(state: Object, ran: bool | None = None, name: str = "trainer") -> Object:
    """Return the status of a container. One that ever `ran` has the ID of its runtime."""
    if ran is None:
        ran = "waiting" not in state
    return {
        "name": name,
        "image": "trainer:1",
        "imageID": "sha256:1" if ran else "",
        "containerID": f"containerd://{name}" if ran else None,
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }
