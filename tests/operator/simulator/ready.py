"""The condition Ready of a pod, as its kubelet and the node lifecycle controller write it."""

from finetune_api.base import Object
from tests.operator.simulator.clock import Clock


def merged(old: Object, written: Object, clock: Clock) -> Object:
    """Return a pod's status after a write, with the condition Ready that a kubelet derives.

    A kubelet derives it whenever it reports the phase or the containers.
    """
    conditions = {c["type"]: c for c in [*_conditions(old), *_conditions(written)]}
    status = {**old, **written}
    reports = "phase" in written or "containerStatuses" in written
    if reports and not any(c["type"] == "Ready" for c in _conditions(written)):
        found = _ready(status)
        if _state(conditions.get("Ready")) != _state(found):
            conditions["Ready"] = {**found, "lastTransitionTime": clock.stamp()}
    return {**status, "conditions": list(conditions.values())} if conditions else status


def silent(clock: Clock) -> Object:
    """Return the condition of a ready pod whose node has stopped to answer: it has no reason."""
    return {"type": "Ready", "status": "False", "lastTransitionTime": clock.stamp()}


def _conditions(status: Object) -> list[Object]:
    found: list[Object] = status.get("conditions", [])
    return found


def _ready(status: Object) -> Object:
    states = [c.get("state", {}) for c in status.get("containerStatuses", [])]
    if states and all("running" in state for state in states):
        return {"type": "Ready", "status": "True"}
    reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(status.get("phase", ""))
    return {"type": "Ready", "status": "False", "reason": reason or "ContainersNotReady"}


def _state(condition: Object | None) -> tuple[object, object]:
    return (condition or {}).get("status"), (condition or {}).get("reason")
