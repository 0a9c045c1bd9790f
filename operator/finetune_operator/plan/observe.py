"""What the planner sees: small frozen records made of API objects."""

from dataclasses import dataclass, replace
from datetime import datetime
from sys import intern

from finetune_api import names
from finetune_api.base import Object, clean
from finetune_api.run import Report, Result
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan import older

LOST = 60.0  # s after its deletion was due: nobody will confirm a pod's end any more


def parse_time(text: str | None) -> datetime | None:
    """A Kubernetes timestamp."""
    return datetime.fromisoformat(text) if text else None


@dataclass(frozen=True)
class Job:
    """A FineTuneJob."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    generation: int
    spec: FineTuneJobSpec
    status: FineTuneJobStatus
    deleting: bool = False

    @classmethod
    def of(cls, item: Object, before: "Job | None" = None) -> "Job":
        """From an API object; ValueError when a newer version wrote what this one cannot read.

        `before` is an earlier version of the same object, whose spec need not be read again.
        """
        metadata = item["metadata"]
        if before and before.generation == metadata["generation"]:
            spec = before.spec
        else:
            spec = FineTuneJobSpec.model_validate(item["spec"], extra="ignore")
        status = FineTuneJobStatus.model_validate(item.get("status", {}))
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
            generation=metadata["generation"],
            spec=spec,
            status=older.completed(status, spec),
            deleting="deletionTimestamp" in metadata,
        )

    def with_status(self, status: FineTuneJobStatus) -> "Job":
        """The job as it will be once the status is written."""
        return replace(self, status=status)


@dataclass(frozen=True)
class Ended:
    """How the trainer container ended."""

    exit_code: int
    reason: str
    finished: datetime
    message: str

    def result(self) -> Result | None:
        """The container's own words, None when it left none (what it left is untrusted)."""
        try:
            return Result.model_validate_json(self.message)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a job."""

    name: str
    uid: str
    namespace: str
    role: str
    attempt: int
    index: int
    phase: str
    owner: str | None
    job: str = ""  # the name in its label, which need not be true
    node: str | None = None
    created: datetime | None = None
    ip: str | None = None
    scheduled: datetime | None = None
    unschedulable: str | None = None
    gates: tuple[str, ...] = ()  # scheduling gates that hold it, as queueing systems set them
    waiting: tuple[str, str] | None = None  # why a container does not start: reason, message
    running: bool = False
    ended: Ended | None = None
    terminal_since: datetime | None = None  # of a pod that failed without its container's end
    deletion: datetime | None = None  # moment by which it must be gone, the grace included
    disrupted: bool = False
    trouble: tuple[str, str] | None = None  # the pod failed as a whole: reason, message
    inputs: str | None = None  # of a prepare pod: what its answer is valid for
    template: str | None = None  # of a prepare pod: of what the user may say about its place
    retry: int = 0  # of a prepare pod: how many failed before it
    gone: bool = False  # the object does not exist any more; this is the last that was seen
    gone_at: datetime | None = None  # when that was seen; None: it was found missing later

    @classmethod
    def of(cls, item: Object) -> "Pod":
        """From an API object."""
        metadata, status = item["metadata"], item.get("status", {})
        labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        scheduled = conditions.get("PodScheduled", {})
        bound = scheduled.get("status") == "True"
        gates = tuple(g["name"] for g in item.get("spec", {}).get("schedulingGates", []))
        statuses = status.get("containerStatuses", [])
        trainer: Object = next((s for s in statuses if s["name"] == names.CONTAINER), {})
        state = trainer.get("state", {})
        ended = _ended(state, status)
        node = item.get("spec", {}).get("nodeName")
        owners = [o["uid"] for o in metadata.get("ownerReferences", []) if o.get("controller")]
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            namespace=intern(metadata["namespace"]),
            role=intern(labels.get(names.LABEL_ROLE, "")),
            attempt=_number(labels.get(names.LABEL_ATTEMPT, "0")),
            index=_number(labels.get(names.LABEL_WORKER_INDEX, "0")),
            phase=intern(status.get("phase", "Pending")),
            owner=intern(owners[0]) if owners else None,
            job=intern(labels.get(names.LABEL_JOB_NAME, "")),
            node=intern(node) if node else None,
            created=parse_time(metadata.get("creationTimestamp")),
            ip=status.get("podIP"),
            scheduled=parse_time(scheduled.get("lastTransitionTime")) if bound else None,
            unschedulable=None if bound or gates else scheduled.get("message"),
            gates=gates,
            waiting=_waiting([trainer, *status.get("initContainerStatuses", []), *statuses]),
            running="running" in state,
            ended=ended,
            deletion=parse_time(metadata.get("deletionTimestamp")),
            disrupted=conditions.get("DisruptionTarget", {}).get("status") == "True",
            terminal_since=None if ended else _terminal_since(status, conditions),
            trouble=None if ended else _trouble(status),
            inputs=annotations.get(names.ANNOTATION_INPUTS),
            template=annotations.get(names.ANNOTATION_TEMPLATE),
            retry=_number(annotations.get(names.ANNOTATION_RETRY, "0")),
        )

    @property
    def key(self) -> tuple[str, str]:
        """Of the job to look at when something happens to it: namespace, name."""
        return self.namespace, self.job

    def belongs_to(self, job: Job) -> bool:
        """Whether the job made it: anybody may label a pod of his own, in any namespace."""
        return self.namespace == job.namespace and self.owner == job.uid

    def vanished(self, at: datetime | None = None) -> "Pod":
        """The same pod, its object gone; `at`: the moment of the event that told so."""
        return replace(self, gone=True, running=False, gone_at=at)

    def lost(self, now: datetime) -> bool:
        """Long past the moment by which it should have been gone: nobody will confirm its end."""
        return self.deletion is not None and (now - self.deletion).total_seconds() > LOST

    def over(self, now: datetime) -> bool:
        """Absent, ended or lost: the next attempt need not wait for it.

        By the phase, not by the trainer container: a sidecar that still runs holds the devices.
        """
        return self.gone or self.phase in _TERMINAL or self.lost(now)

    def undeleted(self, now: datetime) -> bool:
        """Whether its deletion must be asked for: nobody did, or the request was cut.

        The API server removes a pod that has ended in two steps. When whoever asked for it dies in
        between, the pod stays, with a deletion that is due, until its kubelet looks at it.
        """
        return self.deletion is None or (self.phase in _TERMINAL and now > self.deletion)

    @property
    def told_to_stop(self) -> bool:
        """Somebody asked it to go: preemption, drain, eviction, kubectl delete."""
        return self.deletion is not None or self.disrupted or self.gone


_TERMINAL = ("Succeeded", "Failed")
_PASSES = ("", "ContainerCreating", "PodInitializing")


def _number(text: str) -> int:
    """Of a label or an annotation, -1 for what the operator did not write."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def _terminal_since(status: Object, conditions: dict[str, Object]) -> datetime | None:
    """The newest change of a condition: nothing of the pod changes after its end."""
    if status.get("phase") not in _TERMINAL:
        return None
    times = [parse_time(c.get("lastTransitionTime")) for c in conditions.values()]
    return max((time for time in times if time), default=None)


def _trouble(status: Object) -> tuple[str, str] | None:
    """Evicted, refused by the node, or an init container failed: no trainer container ended."""
    if status.get("phase") != "Failed":
        return None
    text = status.get("message", "")
    for init in status.get("initContainerStatuses", []):
        end = init.get("state", {}).get("terminated", {})
        if end.get("exitCode"):
            text = text or f"init container {init['name']} ended with {end['exitCode']}"
    return status.get("reason") or "PodFailed", text or "its container never ran"


def _waiting(containers: list[Object]) -> tuple[str, str] | None:
    """Of the first that waits for what does not pass by itself within seconds."""
    for container in containers:
        waiting = container.get("state", {}).get("waiting", {})
        if (reason := waiting.get("reason", "")) not in _PASSES:
            name, message = container["name"], waiting.get("message", "")
            own = name == names.CONTAINER
            return reason, message if own else f"container {name}: {message}"
    return None


def _ended(state: Object, status: Object) -> Ended | None:
    if "terminated" not in state:
        return None
    end = state["terminated"]
    finished = parse_time(end.get("finishedAt")) or parse_time(status.get("startTime"))
    if finished is None:
        return None
    message = clean(end.get("message", "")) or ""
    return Ended(end["exitCode"], end.get("reason", ""), finished, message)


@dataclass(frozen=True)
class Refusal:
    """Why something may not be created: it waits, says so and tries again."""

    reason: str  # ClaimMissing | InvalidTemplate | Forbidden | NameTaken | RunConfigTooLarge
    message: str


def last_words(gang: list[Pod]) -> Result | None:
    """What worker 0 left when it ended, None when it left nothing."""
    first = next((pod for pod in gang if pod.index == 0 and pod.ended), None)
    return first.ended.result() if first and first.ended else None


@dataclass(frozen=True)
class World:
    """All that a decision may depend on."""

    job: Job
    pods: tuple[Pod, ...]  # of this job's uid, also those that are gone, as last seen
    now: datetime
    report: Report | None = None  # newest of the current attempt's worker 0
    silent: bool = False  # worker 0 runs and no report was received for a while
    refusal: Refusal | None = None  # what a check by the API server answered

    @property
    def prepare_pods(self) -> list[Pod]:
        """Prepare pods that exist."""
        return [pod for pod in self.pods if pod.role == "prepare" and not pod.gone]

    def gang(self, attempt: int) -> list[Pod]:
        """Workers of an attempt, by index."""
        found = [p for p in self.pods if p.role == "worker" and p.attempt == attempt]
        # A pod that was made again (before the gang was complete) outranks the one that is gone.
        best = {pod.index: pod for pod in sorted(found, key=lambda pod: not pod.gone)}
        return [best[index] for index in sorted(best)]
