"""FineTuneJobStatus: what the operator observed about a job.

A status stays below 32 KiB, because every change sends it to every watcher; a test fills each field
to its bound. Texts that are also available elsewhere are therefore cut instead of refused:
conditions repeat `message`, earlier attempts have events, and sources are in the spec.
"""

from itertools import accumulate
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from finetune_api.base import Message, Time
from finetune_api.memory import ModelFacts
from finetune_api.names import MAX_ATTEMPTS, MAX_AVOIDED_NODES, MAX_CHECKPOINTS
from finetune_api.progress import (
    MAX_IGNORED,
    CheckpointRecord,
    DataSummary,
    Evaluation,
    Output,
    Plan,
    Progress,
    Stage,
)

Phase = Literal[
    "Pending",
    "Preparing",
    "Queued",
    "Starting",
    "Running",
    "Restarting",
    "Suspending",
    "Suspended",
    "Succeeded",
    "Failed",
]
FINISHED: tuple[Phase, ...] = ("Succeeded", "Failed")
"""Phases that never change."""
Sentence = Annotated[str, Field(max_length=1024)]
Word = Annotated[str, Field(max_length=64)]
CELL_MAX = 32
Cell = Annotated[str, Field(max_length=CELL_MAX)]
_Narrow = Annotated[str, Field(max_length=16)]
OwnWord = Annotated[str, Field(max_length=32)]
"""A CamelCase word of this project, in contrast to one that a node or a pod reports."""
Index = Annotated[int, Field(ge=0, le=4096)]
"""A number or an index of workers or devices: workers.replicas is at most 4096."""
MAX_LOST_WORKERS = 4
_CORRECTABLE = 1  # earlier attempts whose lost workers are kept
_SHORT, _EARLIER_MAX, _SOURCE_MAX, _NODE_MAX = 185, 100, 35, 63


def _head(text: str, most: int = _SHORT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _tail(text: str) -> str:
    return text if len(text) <= _SOURCE_MAX else "…" + text[1 - _SOURCE_MAX :]


def _first_names(names: list[str]) -> list[str]:
    """Return the names that fit; trainers do not send more."""
    sizes = accumulate(len(name) for name in names)
    return [name for name, size in zip(names, sizes, strict=True) if size <= MAX_IGNORED]


Short = Annotated[
    str,
    BeforeValidator(lambda text: _head(text) if isinstance(text, str) else text),
    Field(max_length=_SHORT),
]


class Resolved(Message):
    """Values that were chosen at the first commit and stay for the life of the job."""

    image: str = Field(
        max_length=512,
        description="image is the trainer image of all attempts. It ends with @ and the digest "
        "that ran, if the container runtime reported one for this repository.",
    )
    model_revision: str = Field(
        max_length=80,
        description="modelRevision identifies the model: the commit of an hf:// model, otherwise a "
        "digest of the files at the model's address.",
    )
    prepared_digest: str = Field(
        max_length=80, description="preparedDigest is the digest of the prepared data."
    )
    run_digest: str = Field(
        max_length=80,
        description="runDigest is the digest of model, data and training. A checkpoint is resumed "
        "only if its digest is the same.",
    )
    parameter_count: int = Field(
        description="parameterCount is the number of parameters of the model."
    )
    model_facts: ModelFacts | None = Field(
        default=None,
        description="modelFacts is what the memory of a device depends on. It is unset if the "
        "prepare pod could not measure the model.",
    )


class WorkerCounts(Message):
    """The number of pods of the current attempt."""

    desired: int = Field(default=0, description="desired is the number of pods of the gang.")
    running: int = Field(default=0, description="running is the number of pods that run.")
    pending: int = Field(
        default=0, description="pending is the number of pods that do not run yet."
    )
    failed: int = Field(
        default=0,
        description="failed is the number of pods that ended with another exit code than 0.",
    )


class Usage(Message):
    """The device time of all attempts.

    A device counts from the time when its pod was bound to a node until the last container of the
    pod ended. The three parts add up to deviceSeconds: productive and lost time is measured in
    steps, and overhead is the rest.
    """

    device_seconds: int = Field(
        default=0, description="deviceSeconds is the number of device seconds of all attempts."
    )
    productive_device_seconds: int = Field(
        default=0,
        description="productiveDeviceSeconds is the number of device seconds of steps that no "
        "earlier attempt had finished.",
    )
    lost_device_seconds: int = Field(
        default=0,
        description="lostDeviceSeconds is the number of device seconds of steps that an earlier "
        "attempt had already finished.",
    )
    overhead_device_seconds: int = Field(
        default=0,
        description="overheadDeviceSeconds is the number of all other device seconds: start, "
        "loading, saving, waiting. It contains the steps that were not reported yet, so it falls "
        "with the next report, also with the first one that a new operator reads.",
    )
    gpu_hours: str = Field(
        default="0.00",
        max_length=32,
        description="gpuHours is deviceSeconds divided by 3600, with two decimals.",
    )
    estimated: bool = Field(
        default=False,
        description="estimated is true if the exact end of a pod is not known. It is charged up to "
        "the moment when it was seen to be over, or up to its last proof of life.",
    )


class Attempt(Message):
    """One gang, from its commit to its outcome."""

    number: int = Field(description="number is the number of the attempt, starting at 1.")
    workers: Index = Field(default=1, description="workers is the number of pods of this gang.")
    devices_per_worker: Index = Field(
        default=1, description="devicesPerWorker is the number of devices of each pod."
    )
    start_time: Time = Field(description="startTime is the time when the attempt was committed.")
    running_time: Time | None = Field(
        default=None,
        description="runningTime is the time when all workers ran for the first time.",
    )
    completion_time: Time | None = Field(
        default=None, description="completionTime is the time when the attempt ended."
    )
    config_digest: Word | None = Field(
        default=None,
        description="configDigest is the digest of the configuration that every worker of this "
        "attempt has. A change of the spec takes effect with the next attempt.",
    )
    created: bool = Field(
        default=False,
        description="created is true once all pods existed. A pod that is missing afterwards has "
        "vanished.",
    )
    outcome: _Narrow | None = Field(
        default=None,
        description="outcome is how the attempt ended: Succeeded, Failed, Preempted (asked to stop "
        "by something other than the operator), Suspended or Released (ended for a reason "
        "outside of the job, and tried again uncounted). It is unset while the attempt runs.",
    )
    stop_reason: OwnWord | None = Field(
        default=None,
        description="stopReason is why the operator asks the gang to stop. It is written before "
        "any pod is deleted.",
    )
    schedulable_time: Time | None = Field(
        default=None,
        description="schedulableTime is the time when all pods existed and no scheduling gate held "
        "one.",
    )
    active_seconds: int = Field(
        default=0,
        description="activeSeconds is the number of seconds for which all workers ran.",
    )
    reason: Word | None = Field(
        default=None, description="reason is the CamelCase reason of the outcome."
    )
    worker: Index | None = Field(
        default=None, description="worker is the index of the worker that failed first."
    )
    node: Short | None = Field(
        default=None,
        description="node is the node of that worker, or the node that does not answer.",
    )
    exit_code: int | None = Field(
        default=None, description="exitCode is the exit code of that worker's trainer container."
    )
    message: Sentence | None = Field(
        default=None, description="message explains the outcome to a person."
    )
    counted: bool | None = Field(
        default=None,
        description="counted is true if the restart after this attempt counts against "
        "runPolicy.maxRestarts.",
    )
    device_seconds: int = Field(
        default=0, description="deviceSeconds is the number of device seconds of this attempt."
    )
    productive_device_seconds: int = Field(
        default=0,
        description="productiveDeviceSeconds is the number of device seconds of steps that no "
        "earlier attempt had finished.",
    )
    lost_device_seconds: int = Field(
        default=0,
        description="lostDeviceSeconds is the number of device seconds of steps that an earlier "
        "attempt had already finished.",
    )
    estimated: bool = Field(
        default=False,
        description="estimated is true if the exact end of a pod is not known.",
    )
    first_step: int | None = Field(
        default=None, description="firstStep is the step that the attempt started from."
    )
    last_step: int | None = Field(
        default=None, description="lastStep is the last step that the attempt finished."
    )
    checkpoint_step: int | None = Field(
        default=None,
        description="checkpointStep is the step of the newest verified checkpoint when the "
        "attempt ended.",
    )
    accounted_until: Time | None = Field(
        default=None,
        description="accountedUntil is the time up to which deviceSeconds counts running pods.",
    )
    vanished_workers: int = Field(
        default=0,
        description="vanishedWorkers is the number of pods that vanished before their end was "
        "observed.",
    )
    vanished_device_seconds: int = Field(
        default=0,
        description="vanishedDeviceSeconds is the part of deviceSeconds that belongs to vanished "
        "pods, up to their last proof of life.",
    )
    vanished_time: Time | None = Field(
        default=None, description="vanishedTime is the last proof of life of the vanished pods."
    )
    lost_workers: list[Index] = Field(
        default_factory=list,
        max_length=MAX_LOST_WORKERS,
        description="lostWorkers are the indexes of up to 4 workers of the newest two attempts "
        "that were lost with their nodes. They were charged up to accountedUntil, which is "
        "corrected once their exact ends are known.",
    )
    settled: bool = Field(
        default=False,
        description="settled is true once every pod has ended. The device seconds are final, "
        "except for a correction of an estimate.",
    )
    corrected: bool = Field(
        default=False,
        description="corrected is true if an estimate was corrected from the attempt's own record "
        "on storage, or by an exact end that became known later.",
    )


class AvoidedNode(Message):
    """A node that refused or lost pods of this job, and that later pods avoid."""

    name: str = Field(max_length=253, description="name is the name of the node.")
    reason: Word = Field(description="reason is the CamelCase reason of the newest fault.")
    faults: int = Field(
        description="faults is the number of faults of the node that this job met. After the first "
        "one, workers prefer other nodes; from the second one on, they are not placed there."
    )


_SUMMED = (
    *("message", "outcome", "reason", "stop_reason", "node"),
    *("config_digest", "schedulable_time", "vanished_time"),
)
"""Fields that mean nothing in a sum of several attempts."""


def _shortened(attempt: Attempt) -> Attempt:
    """Return an earlier attempt without what is only needed while it is the newest one."""
    message = attempt.message and _head(attempt.message, _EARLIER_MAX)
    node = attempt.node and _head(attempt.node, _NODE_MAX)
    return attempt.replace(message=message, node=node, schedulable_time=None, config_digest=None)


class Display(Message):
    """Formatted text for printer columns, which cannot format values themselves."""

    progress: _Narrow | None = Field(
        default=None, description="progress is the finished part of the run in percent."
    )
    step: Cell | None = Field(default=None, description="step is the finished and the total steps.")
    loss: Cell | None = Field(default=None, description="loss is the training loss.")
    validation: Cell | None = Field(
        default=None, description="validation is the newest and the best validation loss."
    )
    eta: _Narrow | None = Field(default=None, description="eta is the estimated time left.")
    restarted: Cell | None = Field(
        default=None,
        description="restarted is why the gang was restarted last, and the step it had reached.",
    )
    gpu_hours: Cell | None = Field(
        default=None, description="gpuHours is the device time in hours."
    )
    checkpoint: Cell | None = Field(
        default=None, description="checkpoint is the step of the newest verified checkpoint."
    )
    workers: _Narrow | None = Field(
        default=None, description="workers is the running and the desired number of workers."
    )


class Condition(Message):
    """A condition, as Kubernetes defines it."""

    type: OwnWord = Field(description="type is the name of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(
        description="status is whether the condition holds: True, False or Unknown."
    )
    reason: Word = Field(description="reason is the CamelCase reason of the status.")
    message: Short = Field(default="", description="message explains the status to a person.")
    observed_generation: int | None = Field(
        default=None,
        description="observedGeneration is the metadata.generation that the condition was set for.",
    )
    last_transition_time: Time = Field(
        description="lastTransitionTime is the time when the status changed last."
    )


class FineTuneJobStatus(Message):
    """The observed state of a job. Only the operator writes it."""

    model_config = ConfigDict(extra="ignore")

    observed_generation: int | None = Field(
        default=None,
        description="observedGeneration is the metadata.generation that the status describes.",
    )
    phase: Phase | None = Field(
        default=None,
        description="phase is a summary of the job's state. Succeeded and Failed are final.",
    )
    stage: Stage | None = Field(
        default=None, description="stage is what the pods are doing while they run."
    )
    reason: Word | None = Field(
        default=None, description="reason is the CamelCase reason of the phase."
    )
    message: Sentence | None = Field(
        default=None, description="message explains the phase to a person."
    )
    start_time: Time | None = Field(
        default=None,
        description="startTime is the time when all workers ran for the first time.",
    )
    completion_time: Time | None = Field(
        default=None, description="completionTime is the time when the job succeeded or failed."
    )
    attempt: int | None = Field(
        default=None, description="attempt is the number of the newest committed attempt."
    )
    restarts: int = Field(
        default=0,
        description="restarts is the number of times the whole gang was restarted, including the "
        "restart that is due while phase is Restarting. It never decreases.",
    )
    counted_restarts: int = Field(
        default=0,
        description="countedRestarts is the number of restarts that count against "
        "runPolicy.maxRestarts. A verified checkpoint beyond lastFailureStep resets it to 0.",
    )
    prepare_failures: int = Field(
        default=0,
        description="prepareFailures is the number of times the prepare pod failed and was "
        "retried.",
    )
    prepare_interruptions: int = Field(
        default=0,
        description="prepareInterruptions is the number of times the prepare pod was evicted, "
        "deleted, refused by a node or lost, or found its storage in use, and was created again.",
    )
    prepare_problem: Short | None = Field(
        default=None,
        description="prepareProblem is why the newest prepare pod that failed or was interrupted "
        "ended.",
    )
    prepare_schedulable_time: Time | None = Field(
        default=None,
        description="prepareSchedulableTime is the time when the prepare pod was first observed "
        "without the scheduling gate that had held it.",
    )
    last_failure_step: int | None = Field(
        default=None,
        description="lastFailureStep is the step of the last failure that counts. A verified "
        "checkpoint beyond it resets countedRestarts.",
    )
    next_attempt_time: Time | None = Field(
        default=None,
        description="nextAttemptTime is the time before which the next attempt does not start.",
    )
    resolved: Resolved | None = Field(
        default=None,
        description="resolved holds the values that were chosen at the first commit and stay for "
        "the life of the job.",
    )
    plan: Plan | None = Field(
        default=None,
        description="plan holds the training settings that were chosen where the spec leaves them "
        "unset.",
    )
    data: DataSummary | None = Field(default=None, description="data describes the prepared data.")
    workers: WorkerCounts | None = Field(
        default=None, description="workers counts the pods of the current attempt."
    )
    progress: Progress | None = Field(
        default=None, description="progress describes training after the last finished step."
    )
    evaluation: Evaluation | None = Field(
        default=None, description="evaluation holds validation losses in nats per trained token."
    )
    usage: Usage | None = Field(
        default=None, description="usage is the device time of all attempts."
    )
    checkpoints: list[CheckpointRecord] = Field(
        default_factory=list,
        max_length=MAX_CHECKPOINTS,
        description="checkpoints lists up to 10 published checkpoints, the newest first.",
    )
    latest_checkpoint: CheckpointRecord | None = Field(
        default=None, description="latestCheckpoint is the newest verified checkpoint."
    )
    output: Output | None = Field(
        default=None, description="output describes the finished model folder."
    )
    attempts: list[Attempt] = Field(
        default_factory=list,
        max_length=MAX_ATTEMPTS,
        description="attempts lists the newest attempts, up to 10, the oldest first.",
    )
    folded_attempts: Attempt | None = Field(
        default=None,
        description="foldedAttempts holds the sums of the attempts that are older than those in "
        "attempts.",
    )
    avoided_nodes: list[AvoidedNode] = Field(
        default_factory=list,
        max_length=MAX_AVOIDED_NODES,
        description="avoidedNodes lists up to 5 nodes that the next attempt avoids, because they "
        "refused pods of this job or failed under them.",
    )
    display: Display | None = Field(
        default=None, description="display holds the text of the columns of kubectl get."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=8,
        description="conditions lists the conditions of the job.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

    @field_validator("attempts")
    @classmethod
    def _shorten_earlier(cls, attempts: list[Attempt]) -> list[Attempt]:
        short = [_shortened(attempt) for attempt in attempts[:-1]]
        old = [attempt.replace(lost_workers=[]) for attempt in short[:-_CORRECTABLE]]
        return [*old, *short[-_CORRECTABLE:], *attempts[-1:]]

    @field_validator("folded_attempts")
    @classmethod
    def _shorten_folded(cls, folded: Attempt | None) -> Attempt | None:
        return folded and folded.replace(**dict.fromkeys(_SUMMED), lost_workers=[])

    @field_validator("data")
    @classmethod
    def _shorten_data(cls, data: DataSummary | None) -> DataSummary | None:
        if data is None:
            return None
        short = [source.replace(source=_tail(source.source)) for source in data.sources]
        return data.replace(sources=short, ignored_columns=_first_names(data.ignored_columns))

    @property
    def finished(self) -> bool:
        """Whether the job has ended. The outcome of a finished job never changes."""
        return self.phase in FINISHED
