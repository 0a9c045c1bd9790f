"""Computes the status of a pod from the states of its containers (pure functions)."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_api.base import Object
from finetune_local.node.container_record import Termination

_WRITTEN_HERE = ("Initialized", "ContainersReady", "Ready")


@dataclass
class State:
    """The state of one container."""

    waiting: str = "ContainerCreating"
    message: str = ""
    started: datetime | None = None
    ended: Termination | None = None
    restarts: int = 0
    previous: Termination | None = None  # how it ended before it was started again

    def to_dict(self) -> Object:
        """Return the state as `containerStatuses[].state`."""
        if self.ended:
            return _terminated(self.ended)
        if self.started:
            return {"running": {"startedAt": stamp(self.started)}}
        return {
            "waiting": {"reason": self.waiting}
            | ({"message": self.message} if self.message else {})
        }

    def last(self) -> Object:
        """Return the end of the previous start as `containerStatuses[].lastState`."""
        return _terminated(self.previous) if self.previous else {}


def _terminated(end: Termination) -> Object:
    entry = {
        "exitCode": end.exit_code,
        "reason": end.reason,
        "startedAt": stamp(end.started),
        "finishedAt": stamp(end.finished),
    }
    return {"terminated": entry | ({"message": end.message} if end.message else {})}


@dataclass
class PodState:
    """The state of a pod."""

    ip: str
    host_ip: str
    init: dict[str, State] = field(default_factory=dict)
    main: dict[str, State] = field(default_factory=dict)
    failed: tuple[str, str] | None = None  # reason and message, if the pod itself failed
    pulled: bool = False  # the images are there


def phase(state: PodState) -> str:
    """Return the phase of a pod. A container that will be started again has not ended."""
    if state.failed:
        return "Failed"
    if any(s.ended and s.ended.exit_code for s in state.init.values()):
        return "Failed"
    ends = [s.ended for s in state.main.values()]
    if all(ends):
        return "Failed" if any(end and end.exit_code for end in ends) else "Succeeded"
    return "Running" if any(s.started or s.previous for s in state.main.values()) else "Pending"


def status(pod: Object, state: PodState, now: datetime) -> Object:
    """Return the `status` to write, which keeps the conditions that other components set."""
    current = phase(state)
    running = all(s.started and not s.ended for s in state.main.values())
    initialized = all(s.ended and s.ended.exit_code == 0 for s in state.init.values())
    # A kubelet writes its addresses only after it has pulled the images.
    addresses: Object = {"podIP": state.ip, "podIPs": [{"ip": state.ip}]} if state.pulled else {}
    conditions = {"Initialized": initialized, "ContainersReady": running, "Ready": running}
    result: Object = {
        "phase": current,
        "hostIP": state.host_ip,
        **addresses,
        "startTime": pod.get("status", {}).get("startTime") or stamp(now),
        "conditions": _conditions(pod, conditions, now),
        "containerStatuses": _containers(pod["spec"]["containers"], state.main),
    }
    if state.init:
        containers = pod["spec"]["initContainers"]
        result["initContainerStatuses"] = _containers(containers, state.init)
    if state.failed:
        result["reason"], result["message"] = state.failed
    return result


def _conditions(pod: Object, values: dict[str, bool], now: datetime) -> list[Object]:
    old = {c["type"]: c for c in pod.get("status", {}).get("conditions", [])}
    kept = [c for kind, c in old.items() if kind not in _WRITTEN_HERE]
    for kind, value in values.items():
        text = "True" if value else "False"
        before = old.get(kind, {})
        moment = before.get("lastTransitionTime") if before.get("status") == text else stamp(now)
        reason = {} if value else {"reason": "ContainersNotReady"}
        kept.append({"type": kind, "status": text, "lastTransitionTime": moment, **reason})
    return kept


def _containers(specs: list[Object], states: dict[str, State]) -> list[Object]:
    return [
        {
            "name": spec["name"],
            "image": spec["image"],
            "imageID": f"local/{spec['image']}",
            "restartCount": states[spec["name"]].restarts,
            "ready": bool(states[spec["name"]].started and not states[spec["name"]].ended),
            "started": bool(states[spec["name"]].started and not states[spec["name"]].ended),
            "state": states[spec["name"]].to_dict(),
            "lastState": states[spec["name"]].last(),
        }
        for spec in specs
    ]


def stamp(moment: datetime) -> str:
    """Format a time as Kubernetes does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
