"""The input of the planner: small frozen records made from API objects."""

from dataclasses import dataclass, replace
from datetime import datetime
from sys import intern

from finetune_api import names
from finetune_api.base import Object
from finetune_api.run import Report, Result
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.plan.pod_status import TERMINAL, Ended, PodStatus, parse_time

LOST_AFTER = 60.0
"""Seconds after a pod's deletion was due at which its node is taken to be lost."""


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
    # Uids of other jobs; see RunConfig.unfinished_owners.
    unfinished_owners: tuple[str, ...] | None = None

    @classmethod
    def of(cls, item: Object, before: "Job | None" = None) -> "Job":
        """Read an API object. Raise ValueError if a newer version wrote what this one cannot read.

        `before` is an earlier version of the same object, whose spec is used again if it is the
        same.
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
            status=_with_gang_sizes(status, spec),
            deleting="deletionTimestamp" in metadata,
        )

    def with_status(self, status: FineTuneJobStatus) -> "Job":
        """Return the job as it will be once the status is written."""
        return replace(self, status=status)


def _with_gang_sizes(status: FineTuneJobStatus, spec: FineTuneJobSpec) -> FineTuneJobStatus:
    """Fill in the sizes of gangs, which earlier operators did not write.

    Those operators did not let the spec's sizes change.
    """
    if all("workers" in attempt.model_fields_set for attempt in status.attempts):
        return status
    return status.replace(attempts=[_with_gang_size(a, status, spec) for a in status.attempts])


def _with_gang_size(attempt: Attempt, status: FineTuneJobStatus, spec: FineTuneJobSpec) -> Attempt:
    if "workers" in attempt.model_fields_set:
        return attempt
    runs = attempt.number == status.attempt and status.phase == "Running"
    began = max(attempt.start_time, status.start_time or attempt.start_time) if runs else None
    return attempt.replace(
        workers=spec.workers.replicas,
        devices_per_worker=spec.workers.devices_per_worker,
        running_time=began,
    )


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
    job: str = ""  # the name of its owner
    labelled: bool = True  # the watch on pods includes it
    node: str | None = None
    created: datetime | None = None
    ip: str | None = None
    scheduled: datetime | None = None
    unschedulable: str | None = None
    gates: tuple[str, ...] = ()  # names of its scheduling gates
    waiting: tuple[str, str] | None = None  # reason and message of a container that cannot start
    notice: tuple[str, str] | None = None  # reason and text, if it is slow (slow_pods.py)
    sandbox: bool | None = None  # whether it is ready to start containers; None: not reported
    running: bool = False
    ended: Ended | None = None
    containers_ended: bool = False  # its containers are over; the final phase follows by itself
    released: datetime | None = None  # when its last container ended, if its kubelet knows that
    proof: datetime | None = None  # it is proved to have held its devices until then
    end_seen: datetime | None = None  # when it was seen to be over or gone; None: it was not
    silent_since: datetime | None = None  # since when its node does not answer
    deletion: datetime | None = None  # when its deletion is due, including the grace period
    finalizers: bool = False  # another controller keeps it after its deletion
    disrupted: bool = False  # has the condition DisruptionTarget
    failure: tuple[str, str] | None = None  # reason and message, if it is over and `ended` is None
    inputs: str | None = None  # prepare pod: digest of the inputs that its result is valid for
    template: str | None = None  # prepare pod: digest of what determines its node
    retry: int = 0  # prepare pod: number of prepare pods that failed before it
    image_id: str = ""  # of the trainer's container, as its runtime reports it
    config: str | None = None  # worker: digest of the configuration that it was created with
    memory_limit: str | None = None  # of the trainer container, as a Kubernetes quantity
    gone: bool = False  # the object does not exist any more; this is its last observed state

    @classmethod
    def of(cls, item: Object) -> "Pod":
        """Read an API object."""
        metadata, status = item["metadata"], PodStatus(item)
        labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
        scheduled = status.conditions.get("PodScheduled", {})
        bound = scheduled.get("status") == "True"
        gates = tuple(g["name"] for g in item.get("spec", {}).get("schedulingGates", []))
        node = item.get("spec", {}).get("nodeName")
        owner = _owner(metadata)
        job = owner["name"] if owner else labels.get(names.LABEL_JOB_NAME, "")
        role, attempt, index = _identity(job, metadata["name"], labels)
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            namespace=intern(metadata["namespace"]),
            role=intern(role),
            attempt=attempt,
            index=index,
            phase=intern(status.phase),
            owner=intern(owner["uid"]) if owner else None,
            job=intern(job),
            labelled=names.LABEL_JOB_UID in labels,
            node=intern(node) if node else None,
            created=parse_time(metadata.get("creationTimestamp")),
            ip=item.get("status", {}).get("podIP"),
            scheduled=parse_time(scheduled.get("lastTransitionTime")) if bound else None,
            unschedulable=None if bound or gates else scheduled.get("message"),
            gates=gates,
            waiting=status.waiting,
            sandbox=status.sandbox,
            running=status.running,
            ended=status.ended,
            containers_ended=status.containers_ended,
            released=status.released,
            proof=status.proof if status.finished and not status.released else None,
            deletion=parse_time(metadata.get("deletionTimestamp")),
            finalizers=bool(metadata.get("finalizers")),
            disrupted=status.conditions.get("DisruptionTarget", {}).get("status") == "True",
            silent_since=status.silent_since,
            failure=status.failure,
            memory_limit=_memory_limit(item),
            inputs=annotations.get(names.ANNOTATION_INPUTS),
            template=annotations.get(names.ANNOTATION_TEMPLATE),
            image_id=status.image_id,
            config=annotations.get(names.ANNOTATION_CONFIG),
            retry=_number(annotations.get(names.ANNOTATION_RETRY, "0")),
        )

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name of the job that a change of this pod concerns."""
        return self.namespace, self.job

    def belongs_to(self, job: Job) -> bool:
        """Return whether the job owns the pod. Labels do not prove it: any client can set them."""
        return self.namespace == job.namespace and self.owner == job.uid

    def vanished(self, at: datetime | None = None) -> "Pod":
        """Return the pod as gone; `at` is when the event of its deletion was received."""
        seen = self.end_seen if self.finished else at
        return replace(self, gone=True, running=False, end_seen=seen)

    @property
    def finished(self) -> bool:
        """Whether it has ended, whatever its kubelet still writes about it.

        The end of its containers is written before the final phase. A pod with a final phase may
        have containers that seem to wait or to run, as the kubelet last described them. A sidecar
        that outlives the trainer keeps the pod, and with it the devices.
        """
        return self.containers_ended or self.phase in TERMINAL

    def lost(self, now: datetime) -> bool:
        """Return whether its deletion is so long overdue that its node is taken to be lost."""
        if self.deletion is None or self.finished:
            return False
        return (now - self.deletion).total_seconds() > LOST_AFTER

    def over(self, now: datetime) -> bool:
        """Return whether the pod is gone, ended or lost, so that the next attempt can begin."""
        return self.gone or self.finished or self.lost(now)

    def needs_deletion(self, now: datetime) -> bool:
        """Return whether its deletion must be requested, for the first time or again.

        The API server deletes a pod that has ended in two steps. If the client dies in between, the
        pod keeps a deletion time that has passed until its kubelet handles it.
        """
        if self.deletion is None:
            return True
        return self.phase in TERMINAL and now > self.deletion and not self.finalizers

    @property
    def asked_to_stop(self) -> bool:
        """Whether it was preempted, drained, evicted or deleted by any client."""
        return self.deletion is not None or self.disrupted or self.gone


def _memory_limit(item: Object) -> str | None:
    containers = item.get("spec", {}).get("containers", [])
    trainer: Object = next((c for c in containers if c["name"] == names.CONTAINER), {})
    limit = trainer.get("resources", {}).get("limits", {}).get("memory")
    return None if limit is None else intern(str(limit))


def _owner(metadata: Object) -> Object | None:
    """Return the owner reference of the controller of a pod, or None."""
    references: list[Object] = metadata.get("ownerReferences", [])
    return next((owner for owner in references if owner.get("controller")), None)


def _identity(job: str, name: str, labels: Object) -> tuple[str, int, int]:
    """Return role, attempt and index of a pod.

    The name of a pod cannot be changed. Its labels can, and a worker that seemed to belong to no
    gang would be replaced while it holds its devices.
    """
    if name == names.prepare_pod_name(job):
        return "prepare", 0, 0
    if worker := names.worker_of_pod_name(job, name):
        return "worker", *worker
    attempt, index = labels.get(names.LABEL_ATTEMPT, "0"), labels.get(names.LABEL_WORKER_INDEX, "0")
    return labels.get(names.LABEL_ROLE, ""), _number(attempt), _number(index)


def _number(text: str) -> int:
    """Parse a label or an annotation; return -1 for a value that the operator did not write."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


@dataclass(frozen=True)
class Refusal:
    """Why an object could not be created. The job waits, shows this and tries again."""

    reason: str  # of the condition Accepted
    message: str


def termination_result(gang: list[Pod]) -> Result | None:
    """Return the result that worker 0 left when it ended, or None."""
    first = next((pod for pod in gang if pod.index == 0 and pod.ended), None)
    return first.ended.result() if first and first.ended else None


@dataclass(frozen=True)
class World:
    """Everything that a decision may depend on."""

    job: Job
    pods: tuple[Pod, ...]  # of this job's uid, including those that are gone
    now: datetime
    report: Report | None = None  # the newest one of worker 0 in the current attempt
    silent: bool = False  # worker 0 runs, but no report was received for a while
    refusal: Refusal | None = None  # the API server's answer to Decision.check
    occupied: Refusal | None = None  # its storage is used by another job that has not ended
    failure: Refusal | None = None  # the request that fails again and again, whatever it is for

    @property
    def prepare_pods(self) -> list[Pod]:
        """The prepare pods that exist."""
        return [pod for pod in self.pods if pod.role == "prepare" and not pod.gone]

    def gang(self, attempt: int) -> list[Pod]:
        """Return the workers of an attempt, ordered by index."""
        found = [p for p in self.pods if p.role == "worker" and p.attempt == attempt]
        # A pod may have been created again before the gang was complete: prefer it.
        best = {pod.index: pod for pod in sorted(found, key=lambda pod: not pod.gone)}
        return [best[index] for index in sorted(best)]
