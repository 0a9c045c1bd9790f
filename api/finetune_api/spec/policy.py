"""The parts of the spec that control saving, evaluation, deadlines and clean-up."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.names import MAX_CHECKPOINTS
from finetune_api.spec.common import Spec, StorageUri
from finetune_api.spec.use import INPUT, OPERATOR_SETTING, TRAINER_SETTING, Change, Pods, Use

# Seconds between checkpoints if a job sets neither intervalSeconds nor intervalSteps.
_DEFAULT_INTERVAL_SECONDS = 900
# The prepare pod refuses storage that is in use, so a change of mind must run it again.
_STORAGE_POLICY = Use(Change.ALWAYS, prepare=True, pods=Pods.ALL)


class Checkpoints(Spec):
    """Where the run is stored and how often it is saved."""

    storage: Annotated[StorageUri, INPUT] = Field(
        description="storage is the folder of this run, as pvc://CLAIM/PATH of at most 256 "
        "characters. It holds the checkpoints, the finished model and the records of all attempts. "
        "Every worker must be able to mount the claim for writing. It cannot change after the "
        "first attempt was committed."
    )
    interval_seconds: Annotated[int | None, TRAINER_SETTING] = Field(
        default=None,
        ge=10,
        le=604_800,
        description="intervalSeconds is the number of seconds between checkpoints, 10 to 604800. "
        f"Default: {_DEFAULT_INTERVAL_SECONDS}, unless intervalSteps is set.",
    )
    interval_steps: Annotated[int | None, TRAINER_SETTING] = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="intervalSteps is the number of optimizer steps between checkpoints, 1 to "
        "10000000. If intervalSeconds is set as well, a checkpoint is saved when either interval "
        "has passed. Default: unset.",
    )
    keep_last: Annotated[int, TRAINER_SETTING] = Field(
        default=2,
        ge=1,
        le=MAX_CHECKPOINTS,
        description="keepLast is the number of newest checkpoints that are kept, 1 to 10. The "
        "newest verified checkpoint and the one with the lowest validation loss are never "
        "deleted. Default: 2.",
    )
    on_existing: Annotated[Literal["Refuse", "Resume"], _STORAGE_POLICY] = Field(
        default="Refuse",
        description="onExisting selects what happens if storage holds the run of another job, for "
        "example of one that failed. Refuse fails the job before it requests a device. Resume "
        "continues from the newest checkpoint of that run, provided that model, data and training "
        "are the same, and waits until that job has ended. Default: Refuse.",
    )

    @property
    def seconds_between(self) -> int | None:
        """Seconds between checkpoints; None if only steps decide when to save."""
        if self.interval_seconds is None and self.interval_steps is None:
            return _DEFAULT_INTERVAL_SECONDS
        return self.interval_seconds


class Output(Spec):
    """Which weights become the finished model, and as which type."""

    weights: Literal["Best", "Last"] | None = Field(
        default=None,
        description="weights selects the checkpoint that becomes the model. Best selects the one "
        "with the lowest validation loss, Last the one of the last step. Default: Best if there is "
        "validation data, otherwise Last.",
    )
    dtype: Literal["BF16", "FP16", "FP32"] | None = Field(
        default=None,
        description="dtype is the type in which the weights of the model are stored. They are "
        "rounded from the fp32 master weights. Default: the type of most weights of the base "
        "model.",
    )


class EarlyStopping(Spec):
    """When training ends because the validation loss no longer improves."""

    patience: int = Field(
        ge=1,
        le=1000,
        description="patience is the number of consecutive evaluations without an improvement of "
        "the best validation loss after which training ends and the job succeeds, 1 to 1000.",
    )
    min_delta: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="minDelta is the smallest decrease of the validation loss that counts as an "
        "improvement, in nats per token, 0 to 100. Default: 0.0.",
    )


class Evaluation(Spec):
    """When the validation loss is measured between checkpoints."""

    interval_steps: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="intervalSteps is the number of optimizer steps between evaluations, 1 to "
        "10000000. An evaluation with the lowest loss so far is followed by a checkpoint. Default: "
        "no evaluations besides those before the first step, after the last step and with every "
        "checkpoint.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=None,
        description="earlyStopping ends training when the validation loss no longer improves. "
        "Default: training runs to its end.",
    )


class RunPolicy(Spec):
    """How long the operator waits, when it gives up and what it cleans up."""

    max_restarts: Annotated[int, OPERATOR_SETTING] = Field(
        default=3,
        ge=0,
        le=100,
        description="maxRestarts is the number of counted restarts after which the next failure "
        "fails the job, 0 to 100. A preemption that left a checkpoint does not count, and a "
        "verified checkpoint beyond the last failure resets the count. Default: 3.",
    )
    active_deadline_seconds: Annotated[int | None, OPERATOR_SETTING] = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="activeDeadlineSeconds is the number of seconds that all gangs together may "
        "run, 1 to 31536000. Only time in which every worker runs counts. After it, the gang saves "
        "a checkpoint and the job fails. Default: no limit.",
    )
    start_deadline_seconds: Annotated[int | None, OPERATOR_SETTING] = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="startDeadlineSeconds is the number of seconds within which all pods of an "
        "attempt must run, 1 to 31536000. It counts from the time when all of them exist and none "
        "is held by a scheduling gate, and applies to the prepare pod as well. After it, the job "
        "fails. Default: no limit.",
    )
    gang_start_timeout_seconds: Annotated[int, OPERATOR_SETTING] = Field(
        default=600,
        ge=10,
        le=604_800,
        description="gangStartTimeoutSeconds is the number of seconds for which some workers may "
        "hold a node while others cannot start, 10 to 604800. After it, the gang is deleted "
        "and created again after a delay; this does not count as a restart. Default: 600.",
    )
    progress_deadline_seconds: Annotated[int, TRAINER_SETTING] = Field(
        default=1800,
        ge=10,
        le=604_800,
        description="progressDeadlineSeconds is the number of seconds without any completed work "
        "(rows, tensors, steps) after which the gang is restarted, 10 to 604800. The pods check "
        "it; a change takes effect with the next attempt. Default: 1800.",
    )
    termination_grace_period_seconds: Annotated[int, TRAINER_SETTING] = Field(
        default=300,
        ge=0,
        le=86_400,
        description="terminationGracePeriodSeconds is the number of seconds that a worker has to "
        "save a checkpoint when it is asked to stop, 0 to 86400. A change takes effect with the "
        "next attempt. Default: 300.",
    )
    ttl_seconds_after_finished: Annotated[int | None, OPERATOR_SETTING] = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="ttlSecondsAfterFinished is the number of seconds after which a finished job "
        "and its pods are deleted, 0 to 31536000. Files on storage are kept. Default: the job is "
        "not deleted.",
    )
    clean_pod_policy: Annotated[Literal["None", "Running", "All"], OPERATOR_SETTING] = Field(
        default="Running",
        description="cleanPodPolicy selects the pods that are deleted when the job has finished. "
        "None deletes no pod. Running deletes those with a container that still runs, such as a "
        "sidecar. All deletes every pod and with it the logs. Default: Running.",
    )
