"""Status of a pod from the states of its containers (pure)."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_api.base import Object
from finetune_local.node.record import Ended

_OURS = ("Initialized", "ContainersReady", "Ready")


@dataclass
class State:
    """Where one container stands."""

    waiting: str = "ContainerCreating"
    message: str = ""
    started: datetime | None = None
    ended: Ended | None = None

    def to_dict(self) -> Object:
        """As `containerStatuses[].state`."""
        if self.ended:
            end = self.ended
            entry = {
                "exitCode": end.exit_code,
                "reason": end.reason,
                "startedAt": stamp(end.started),
                "finishedAt": stamp(end.finished),
            }
            return {"terminated": entry | ({"message": end.message} if end.message else {})}
        if self.started:
            return {"running": {"startedAt": stamp(self.started)}}
        return {
            "waiting": {"reason": self.waiting}
            | ({"message": self.message} if self.message else {})
        }


@dataclass
class PodState:
    """Where a pod stands."""

    ip: str
    host_ip: str
    init: dict[str, State] = field(default_factory=dict)
    main: dict[str, State] = field(default_factory=dict)
    failed: tuple[str, str] | None = None  # reason, message: failed as a whole


def phase(state: PodState) -> str:
    """Phase of a pod that is never restarted."""
    if state.failed:
        return "Failed"
    if any(s.ended and s.ended.exit_code for s in state.init.values()):
        return "Failed"
    ends = [s.ended for s in state.main.values()]
    if all(ends):
        return "Failed" if any(end and end.exit_code for end in ends) else "Succeeded"
    return "Running" if any(s.started for s in state.main.values()) else "Pending"


def status(pod: Object, state: PodState, now: datetime) -> Object:
    """The `status` to write; conditions that others set stay."""
    current = phase(state)
    running = all(s.started and not s.ended for s in state.main.values())
    initialized = all(s.ended and s.ended.exit_code == 0 for s in state.init.values())
    truth = {"Initialized": initialized, "ContainersReady": running, "Ready": running}
    result: Object = {
        "phase": current,
        "hostIP": state.host_ip,
        "podIP": state.ip,
        "podIPs": [{"ip": state.ip}],
        "startTime": pod.get("status", {}).get("startTime") or stamp(now),
        "conditions": _conditions(pod, truth, now),
        "containerStatuses": _containers(pod["spec"]["containers"], state.main),
    }
    if state.init:
        containers = pod["spec"]["initContainers"]
        result["initContainerStatuses"] = _containers(containers, state.init)
    if state.failed:
        result["reason"], result["message"] = state.failed
    return result


def _conditions(pod: Object, truth: dict[str, bool], now: datetime) -> list[Object]:
    old = {c["type"]: c for c in pod.get("status", {}).get("conditions", [])}
    kept = [c for kind, c in old.items() if kind not in _OURS]
    for kind, value in truth.items():
        text = "True" if value else "False"
        before = old.get(kind, {})
        moment = before.get("lastTransitionTime") if before.get("status") == text else stamp(now)
        kept.append({"type": kind, "status": text, "lastTransitionTime": moment})
    return kept


def _containers(specs: list[Object], states: dict[str, State]) -> list[Object]:
    return [
        {
            "name": spec["name"],
            "image": spec["image"],
            "imageID": f"local/{spec['image']}",
            "restartCount": 0,
            "ready": bool(states[spec["name"]].started and not states[spec["name"]].ended),
            "started": bool(states[spec["name"]].started and not states[spec["name"]].ended),
            "state": states[spec["name"]].to_dict(),
        }
        for spec in specs
    ]


def stamp(moment: datetime) -> str:
    """As Kubernetes writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
