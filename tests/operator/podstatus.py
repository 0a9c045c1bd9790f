"""Pod statuses as a kubelet writes them."""

from datetime import UTC, datetime

from finetune_api.base import Object, format_time

_READY = ("PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")


def running(address: str = "127.0.0.1") -> Object:
    """Return the status of a pod that is bound to a node and whose container starts now."""
    now = format_time(datetime.now(UTC))
    return {
        "phase": "Running",
        "podIP": address,
        "startTime": now,
        "conditions": [condition(kind, "True", now) for kind in ("PodScheduled", *_READY)],
        "containerStatuses": [_container({"running": {"startedAt": now}})],
    }


def ended(code: int, message: str = "") -> Object:
    """Return the status of a pod whose container ends now with this termination message."""
    now = format_time(datetime.now(UTC))
    end = {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "startedAt": now,
        "finishedAt": now,
        "message": message,
    }
    phase = "Succeeded" if code == 0 else "Failed"
    return {"phase": phase, "containerStatuses": [_container({"terminated": end})]}


def condition(kind: str, status: str, since: str, **more: str) -> Object:
    return {"type": kind, "status": status, "lastTransitionTime": since, **more}


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


def _container(state: Object) -> Object:
    return {
        "name": "trainer",
        "image": "trainer:1",
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }
