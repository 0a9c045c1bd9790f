"""What is kept, how long is waited, when is given up."""

from typing import Literal

from pydantic import Field

from finetune_api.spec.common import Spec, StorageUri


class Checkpoints(Spec):
    """Where the run lives and how often it is saved."""

    storage: StorageUri = Field(
        description="Folder of this run: checkpoints, the finished model, records of attempts. "
        "pvc://CLAIM/PATH on a claim that every worker can mount for writing."
    )
    interval_seconds: int | None = Field(
        default=None,
        ge=10,
        le=604_800,
        description="Seconds between checkpoints. Absent, and intervalSteps absent too: 900.",
    )
    interval_steps: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps between checkpoints; with intervalSeconds, whichever comes "
        "first.",
    )
    keep_last: int = Field(
        default=2,
        ge=1,
        le=10,
        description="Checkpoints kept, default 2; the newest verified one and the one with the "
        "best validation loss are never deleted.",
    )
    on_existing: Literal["Refuse", "Resume"] = Field(
        default="Refuse",
        description="When storage holds the run of another job, for example of one that failed. "
        "Refuse (the default): fail before a device is held. Resume: go on from its newest "
        "checkpoint, if model, data and training are the same.",
    )


class Output(Spec):
    """The finished model."""

    weights: Literal["Best", "Last"] | None = Field(
        default=None,
        description="Which checkpoint becomes the model. Best: that with the lowest validation "
        "loss. Last: that of the last step. Absent: Best where there is validation data, else "
        "Last.",
    )


class EarlyStopping(Spec):
    """When further training would only overfit."""

    patience: int = Field(
        ge=1,
        le=1000,
        description="Evaluations in a row that may fail to beat the best validation loss; then "
        "training ends and the job succeeds.",
    )
    min_delta: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="By how much, in nats per token, a loss must beat the best one, default 0.0.",
    )


class Evaluation(Spec):
    """When the validation loss is measured: also before the first step, at the end and with every
    checkpoint."""

    interval_steps: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps between evaluations. Absent: none besides those. One that is "
        "the best so far is followed by a checkpoint.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Absent: training runs to its end."
    )


class RunPolicy(Spec):
    """How long to wait, when to give up, and what stays. May change at any time."""

    max_restarts: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Restarts after failures, default 3; preemptions that left a checkpoint do "
        "not count, and a checkpoint beyond the last failure clears the count.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Seconds the gangs may run in all, counted while every worker runs; waiting "
        "and suspended time do not count. Then the gang saves a checkpoint and the job is Failed. "
        "Absent: no limit.",
    )
    start_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Seconds from the moment when all pods of an attempt exist and none is held "
        "by a scheduling gate until all of them run; the same for the prepare pod. Then the job is "
        "Failed. Absent: no limit.",
    )
    gang_start_timeout_seconds: int = Field(
        default=600,
        ge=10,
        le=604_800,
        description="Seconds, default 600. When some workers hold a node and others find none for "
        "that long, the whole gang lets go, waits a little and tries again; not counted as a "
        "restart.",
    )
    progress_deadline_seconds: int = Field(
        default=1800,
        ge=10,
        le=604_800,
        description="Seconds without any completed work (rows, tensors, steps) after which a gang "
        "is restarted, default 1800. Judged in the pod; a change counts from the next attempt on.",
    )
    termination_grace_period_seconds: int = Field(
        default=300,
        ge=0,
        le=86_400,
        description="Seconds a worker has to save a checkpoint when it is asked to stop, default "
        "300. A change counts from the next attempt on.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Seconds after which a finished job is deleted with its pods; what lies on "
        "storage stays. Absent: it is kept.",
    )
    clean_pod_policy: Literal["None", "Running", "All"] = Field(
        default="Running",
        description="Pods that are deleted when the job has finished, default Running. None: none. "
        "Running: those in which a container still runs (a sidecar). All: all, their logs too.",
    )
