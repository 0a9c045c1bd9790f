"""FineTuneJobStatus: what the operator says about a job.

The whole of it stays below 32 kB, for it is sent to every watcher with every change (a test fills
each field to its bound). So texts are cut, never refused, where the whole stands elsewhere too:
conditions repeat `message`, older attempts have their events, sources are in the spec.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from finetune_api.base import Message, Time
from finetune_api.progress import (
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
Sentence = Annotated[str, Field(max_length=1024)]
Word = Annotated[str, Field(max_length=64)]
Cell = Annotated[str, Field(max_length=32)]
_SHORT, _SOURCE_MAX = 200, 128


def _head(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _tail(text: str) -> str:
    return text if len(text) <= _SOURCE_MAX else "…" + text[1 - _SOURCE_MAX :]


Short = Annotated[
    str,
    BeforeValidator(lambda text: _head(text) if isinstance(text, str) else text),
    Field(max_length=_SHORT),
]


class Resolved(Message):
    """Chosen once, at the first commit, and kept for the life of the job."""

    image: str = Field(max_length=512, description="Trainer image.")
    model_revision: str = Field(
        max_length=80,
        description="Commit of an hf:// model; else a digest of what the model's address held.",
    )
    prepared_digest: str = Field(max_length=80, description="Digest of the prepared data.")
    run_digest: str = Field(max_length=80, description="What a resume must match.")
    parameter_count: int = Field(description="Parameters of the model.")


class WorkerCounts(Message):
    """Pods of the current attempt."""

    desired: int = 0
    running: int = 0
    pending: int = 0
    failed: int = 0


class Usage(Message):
    """Device time from bound to a node until the trainer container ended, x devices, all attempts.

    The three parts always add up to deviceSeconds: productive and lost are measured in steps,
    overhead is the rest.
    """

    device_seconds: int = Field(default=0, description="Seconds x devices, all attempts.")
    productive_device_seconds: int = Field(default=0, description="Spent on steps that were new.")
    lost_device_seconds: int = Field(default=0, description="Spent on steps done before.")
    overhead_device_seconds: int = Field(
        default=0, description="Everything else: start, loading, saving, waiting."
    )
    gpu_hours: str = Field(default="0.00", max_length=32, description="deviceSeconds / 3600.")
    estimated: bool = Field(
        default=False,
        description="True when a pod vanished unobserved: charged up to its last proof of life.",
    )


class Attempt(Message):
    """One gang from its commit to its end."""

    number: int
    workers: int = Field(default=1, description="Pods of this gang.")
    devices_per_worker: int = Field(default=1, description="Devices of each of its pods.")
    start_time: Time
    running_time: Time | None = Field(default=None, description="First time all its workers ran.")
    completion_time: Time | None = None
    created: bool = Field(
        default=False, description="All pods existed; one that is missing now vanished."
    )
    outcome: Word | None = Field(
        default=None,
        description="Succeeded, Failed, Preempted (told to stop from outside), Suspended or "
        "Released (a gang that could not start as a whole); absent while it goes on.",
    )
    stop_reason: Word | None = Field(
        default=None, description="Why the operator asked the gang to stop, before it did so."
    )
    schedulable_time: Time | None = Field(
        default=None, description="When all its pods existed and none was held by a gate."
    )
    active_seconds: int = Field(default=0, description="How long all its workers ran.")
    reason: Word | None = None
    worker: int | None = Field(default=None, description="Index of the worker that failed first.")
    exit_code: int | None = None
    message: Sentence | None = None
    counted: bool | None = Field(
        default=None, description="Whether its end counts against maxRestarts."
    )
    device_seconds: int = 0
    productive_device_seconds: int = 0
    lost_device_seconds: int = 0
    estimated: bool = False
    first_step: int | None = None
    last_step: int | None = None
    checkpoint_step: int | None = None
    accounted_until: Time | None = Field(
        default=None, description="Moment up to which deviceSeconds counts running pods."
    )
    vanished_workers: int = Field(
        default=0, description="Pods that vanished before their end was seen."
    )
    vanished_device_seconds: int = Field(
        default=0, description="Their part of deviceSeconds, up to the last proof of life."
    )
    vanished_time: Time | None = Field(
        default=None, description="The last proof of life of the pods that vanished."
    )
    settled: bool = Field(
        default=False, description="Every pod is over: the sums change by a correction only."
    )
    corrected: bool = Field(
        default=False, description="An estimate was corrected from the attempt's own record."
    )


def _shortened(attempt: Attempt) -> Attempt:
    if attempt.message is None or len(attempt.message) <= _SHORT:
        return attempt
    return attempt.replace(message=_head(attempt.message))


class Display(Message):
    """Ready strings for printer columns, which cannot format."""

    progress: Cell | None = None
    step: Cell | None = None
    loss: Cell | None = None
    eta: Cell | None = None
    gpu_hours: Cell | None = None
    checkpoint: Cell | None = None
    workers: Cell | None = None


class Condition(Message):
    """A standard Kubernetes condition."""

    type: Word
    status: Literal["True", "False", "Unknown"]
    reason: Word
    message: Short = ""
    observed_generation: int | None = None
    last_transition_time: Time


class FineTuneJobStatus(Message):
    """Observed state; written by the operator only."""

    model_config = ConfigDict(extra="ignore")

    observed_generation: int | None = None
    phase: Phase | None = None
    stage: Stage | None = None
    reason: Word | None = None
    message: Sentence | None = None
    start_time: Time | None = Field(default=None, description="First time all workers ran.")
    completion_time: Time | None = None
    attempt: int | None = Field(default=None, description="Number of the newest committed attempt.")
    restarts: int = Field(default=0, description="All restarts; never decreases.")
    counted_restarts: int = Field(
        default=0, description="Compared with runPolicy.maxRestarts; clears with progress."
    )
    prepare_failures: int = Field(default=0, description="Retries of the prepare pod so far.")
    prepare_schedulable_time: Time | None = Field(
        default=None,
        description="When the prepare pod was first seen without the gate that had held it.",
    )
    last_failure_step: int | None = Field(
        default=None, description="A verified checkpoint beyond it clears countedRestarts."
    )
    next_attempt_time: Time | None = Field(default=None, description="Not before this moment.")
    resolved: Resolved | None = None
    plan: Plan | None = None
    data: DataSummary | None = None
    workers: WorkerCounts | None = None
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    usage: Usage | None = None
    checkpoints: list[CheckpointRecord] = Field(default_factory=list, max_length=10)
    latest_checkpoint: CheckpointRecord | None = None
    output: Output | None = None
    attempts: list[Attempt] = Field(default_factory=list, max_length=10)
    folded_attempts: Attempt | None = Field(
        default=None, description="Sums of attempts older than the list."
    )
    display: Display | None = None
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

    @field_validator("attempts")
    @classmethod
    def _shorten_older(cls, attempts: list[Attempt]) -> list[Attempt]:
        return [*(_shortened(attempt) for attempt in attempts[:-1]), *attempts[-1:]]

    @field_validator("folded_attempts")
    @classmethod
    def _shorten_folded(cls, folded: Attempt | None) -> Attempt | None:
        return folded and _shortened(folded)

    @field_validator("data")
    @classmethod
    def _shorten_sources(cls, data: DataSummary | None) -> DataSummary | None:
        if data is None or all(len(source.source) <= _SOURCE_MAX for source in data.sources):
            return data
        short = [source.replace(source=_tail(source.source)) for source in data.sources]
        return data.replace(sources=short)

    @property
    def finished(self) -> bool:
        """A finished job's outcome never changes."""
        return self.phase in ("Succeeded", "Failed")
