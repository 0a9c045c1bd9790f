"""Pod statuses as a kubelet writes them."""

from datetime import UTC, datetime

from finetune_api.base import Object, format_time


def running(address: str = "127.0.0.1") -> Object:
    """Return the status of a pod that is bound to a node and whose container starts now."""
    now = format_time(datetime.now(UTC))
    return {
        "phase": "Running",
        "podIP": address,
        "startTime": now,
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": now}],
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


def _container(state: Object) -> Object:
    return {
        "name": "trainer",
        "image": "trainer:1",
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }
