"""What the status of a pod means, as kubelets write it.

- The end of a container is written first, with the phase still Running. The final phase follows up
  to a second later, or up to the grace period later where restartable init containers ("native
  sidecars") have to end.
- A pod that its node evicts or refuses before its containers start has a final phase, while its
  containers still wait or have no status at all.
- A kubelet that does not find a container any more writes the reason ContainerStatusUnknown, exit
  code 137 and no time of the end, also for a container that never ran.
- The garbage collector of pods writes the final phase of a pod whose node is gone, and leaves the
  containers as its kubelet last described them.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api import names, reasons
from finetune_api.base import Object, clean
from finetune_api.run import Result

TERMINAL = ("Succeeded", "Failed")
_TRANSIENT = ("", "ContainerCreating", "PodInitializing")
"""Reasons of a waiting container that pass by themselves within seconds."""

_UNKNOWN_ENDS = ("Unknown", "ContainerStatusUnknown")
"""Reasons of an end whose exit code (255, 137) is invented, by containerd and by the kubelet."""


def parse_time(text: str | None) -> datetime | None:
    """Parse a Kubernetes timestamp."""
    return datetime.fromisoformat(text) if text else None


@dataclass(frozen=True)
class Ended:
    """The end of a trainer container."""

    exit_code: int
    reason: str
    finished: datetime  # by the clock of its node
    message: str
    exact: bool = True  # False: the kubelet does not know the time; `finished` is an early estimate

    @property
    def unknown(self) -> bool:
        """Whether the kubelet found the container gone, for example after a restart of its node."""
        return self.reason in _UNKNOWN_ENDS or not self.exact

    def result(self) -> Result | None:
        """Return the result in the termination message, or None if it has no valid one.

        The message is untrusted input.
        """
        try:
            return Result.from_termination_message(self.message)
        except ValueError:
            return None


class PodStatus:
    """The status of a pod, with the parts of the pod that determine what it means."""

    def __init__(self, item: Object) -> None:
        self._metadata, self._spec = item["metadata"], item.get("spec", {})
        self._status: Object = item.get("status", {})
        self.phase: str = self._status.get("phase", "Pending")
        self.conditions: dict[str, Object] = {
            c["type"]: c for c in self._status.get("conditions", [])
        }
        self._containers: list[Object] = self._status.get("containerStatuses", [])
        self._inits: list[Object] = self._status.get("initContainerStatuses", [])
        own = (s for s in self._containers if s["name"] == names.CONTAINER)
        self._trainer: Object = next(own, {})
        self.image_id: str = self._trainer.get("imageID", "")

    @property
    def containers_ended(self) -> bool:
        """Whether the containers are over, so that the final phase follows by itself.

        Restartable init containers do not count, because the kubelet ends them after the others.
        """
        wanted = {c["name"] for c in self._spec.get("containers", [])} or {
            s["name"] for s in self._containers
        }
        ended = {s["name"] for s in self._containers if "terminated" in _state(s)}
        return bool(wanted) and (wanted <= ended or self._failed_init is not None)

    @property
    def finished(self) -> bool:
        """Whether the phase is final or follows by itself."""
        return self.phase in TERMINAL or self.containers_ended

    @property
    def _failed_init(self) -> Object | None:
        """The init container whose failure keeps the others from starting, or None."""
        restarted = {
            c["name"] for c in self._spec.get("initContainers", []) if "restartPolicy" in c
        }
        for init in self._inits:
            code = _state(init).get("terminated", {}).get("exitCode")
            if code and init["name"] not in restarted:
                return init
        return None

    @property
    def sandbox(self) -> bool | None:
        """Whether volumes and network are set up, so that containers can start, if it is known."""
        condition = self.conditions.get("PodReadyToStartContainers")
        return None if condition is None else condition.get("status") == "True"

    @property
    def running(self) -> bool:
        """Whether the trainer container runs."""
        return "running" in _state(self._trainer) and not self.finished

    @property
    def ended(self) -> Ended | None:
        """The end of the trainer container, or None if it has not ended or never ran."""
        end = _state(self._trainer).get("terminated")
        if end is None or not _ran(self._trainer):
            return None
        finished = parse_time(end.get("finishedAt"))
        estimate = finished or self.proof
        if estimate is None:
            return None
        message = clean(end.get("message", "")) or ""
        return Ended(
            end["exitCode"], end.get("reason", ""), estimate, message, exact=finished is not None
        )

    @property
    def released(self) -> datetime | None:
        """The time by which the pod's last container had ended, or None if it is not known."""
        if not self.containers_ended:
            return None
        ends = [
            parse_time(_state(s).get("terminated", {}).get("finishedAt")) for s in self._started
        ]
        known = [end for end in ends if end]
        return max(known) if known and len(known) == len(ends) else None

    @property
    def _started(self) -> list[Object]:
        """The containers whose ends are the end of the pod."""
        return [self._failed_init] if self._failed_init else self._containers

    @property
    def proof(self) -> datetime | None:
        """The last moment at which the pod existed and had not ended, as its status proves it.

        It is the last change of a condition, or the request of the pod's deletion. A deletion with
        a grace period is one of a pod that had not ended.
        """
        times = [parse_time(c.get("lastTransitionTime")) for c in self.conditions.values()]
        states = [value for s in [*self._inits, *self._containers] for value in _state(s).values()]
        times += [parse_time(s.get(part)) for s in states for part in ("startedAt", "finishedAt")]
        times += [parse_time(self._status.get("startTime"))]
        due, grace = self._metadata.get("deletionTimestamp"), self._grace
        if due and grace:
            times += [datetime.fromisoformat(due) - timedelta(seconds=grace)]
        return max((time for time in times if time), default=None)

    @property
    def _grace(self) -> int:
        return int(self._metadata.get("deletionGracePeriodSeconds") or 0)

    @property
    def silent_since(self) -> datetime | None:
        """Since when the node of the pod does not answer, or None.

        For such a node the node lifecycle controller sets Ready of each pod that was ready to
        False, without a reason, and leaves ContainersReady as it was. A kubelet sets both, and
        gives a reason.
        """
        ready, containers = (self.conditions.get(kind, {}) for kind in ("Ready", "ContainersReady"))
        if self.finished or ready.get("status") not in ("False", "Unknown"):
            return None
        if containers.get("status") == "False":
            return None
        return None if ready.get("reason") else parse_time(ready.get("lastTransitionTime"))

    @property
    def failure(self) -> tuple[str, str] | None:
        """Reason and message of a pod that is over without a known end of its trainer container.

        It was evicted, its node refused it, an init container failed, or its node was removed.
        """
        ended = self.ended
        if not self.finished or (ended and not ended.unknown):
            return None
        disruption = self.conditions.get("DisruptionTarget", {})
        disruption = disruption if disruption.get("status") == "True" else {}
        reason = self._status.get("reason") or disruption.get("reason")
        if ended and not reason:
            return None
        text = self._status.get("message") or disruption.get("message", "")
        if init := self._failed_init:
            code = _state(init)["terminated"]["exitCode"]
            text = text or f"init container {init['name']} ended with {code}"
        ran = _ran(self._trainer)
        known = "how its container ended is not known" if ran else "its container never ran"
        return reason or reasons.POD_FAILED, f"{text}; {known}" if text else known

    @property
    def waiting(self) -> tuple[str, str] | None:
        """Reason and message of the first container that waits for a reason to report."""
        if self.finished:
            return None
        for status in [self._trainer, *self._inits, *self._containers]:
            waiting = _state(status).get("waiting", {})
            if (reason := waiting.get("reason", "")) not in _TRANSIENT:
                name, message = status["name"], waiting.get("message", "")
                own = name == names.CONTAINER
                return reason, message if own else f"container {name}: {message}"
        return None


def _state(status: Object) -> Object:
    found: Object = status.get("state", {})
    return found


def _ran(status: Object) -> bool:
    """Return whether a container ever ran. One that did has a time or the ID of its runtime."""
    state = _state(status)
    times = [value.get(part) for value in state.values() for part in ("startedAt", "finishedAt")]
    return bool("running" in state or status.get("containerID") or any(times))
