"""Facts that the trainer measures and the status shows, as models that both sides share."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from finetune_api.base import Count, Message, Rows, Seconds, Step, Time, clean
from finetune_api.memory import DeviceBytes

Stage = Literal[
    "PreparingData", "LoadingModel", "Training", "Evaluating", "Checkpointing", "Exporting"
]


# checkpoints.storage (256) plus what the trainer appends: checkpoints/step-00000400-e0002.
LOCATION_MAX = 300
MAX_KERNEL_PROBLEM = 160
MAX_IGNORED = 360  # characters of all names in ignoredColumns
ColumnName = Annotated[str, AfterValidator(clean), Field(max_length=63)]


class SourceSummary(Message):
    """One training source after preparation."""

    source: str = Field(max_length=512, description="source is the address of the source.")
    rows: Step = Field(description="rows is the number of its packed rows.")
    examples: Step = Field(description="examples is the number of its examples.")
    passes: float | None = Field(
        default=None,
        description="passes is the number of times that the source is used in the whole run.",
    )
    format: str | None = Field(
        default=None,
        max_length=17,
        description="format is the format of its rows: messages, ShareGPT, Alpaca, "
        "prompt/completion or text.",
    )

    _clean = field_validator("source", "format")(clean)


class DataSummary(Message):
    """The result of preparing the data."""

    examples: Step = Field(description="examples is the number of examples that are trained on.")
    rows: Rows = Field(description="rows is the number of packed rows.")
    epoch_rows: Rows | None = Field(
        default=None,
        description="epochRows is the number of rows of one epoch. It exceeds rows if weights make "
        "small sources repeat.",
    )
    tokens: Count = Field(description="tokens is the number of tokens in all rows.")
    trained_tokens: Count = Field(
        description="trainedTokens is the number of tokens that carry loss."
    )
    packing_efficiency: float = Field(
        description="packingEfficiency is tokens divided by rows times sequenceLength, 0 to 1."
    )
    dropped_overlong: Step = Field(
        default=0,
        description="droppedOverlong is the number of examples that were left out because they "
        "exceed sequenceLength.",
    )
    truncated: Step = Field(
        default=0, description="truncated is the number of examples whose end was cut off."
    )
    split: Step = Field(
        default=0,
        description="split is the number of documents that were divided into several.",
    )
    dropped_empty: Step = Field(
        default=0,
        description="droppedEmpty is the number of examples that were left out because they "
        "contain no text.",
    )
    dropped_untrained: Step = Field(
        default=0,
        description="droppedUntrained is the number of examples that were left out because none of "
        "their tokens carries loss.",
    )
    invalid: Step = Field(
        default=0,
        description="invalid is the number of examples that were left out because the chat "
        "template cannot render them.",
    )
    with_special_tokens: Step = Field(
        default=0,
        description="withSpecialTokens is the number of examples whose text contains a special "
        "token of the tokenizer, such as </s>. They are trained on with its plain characters.",
    )
    duplicates: Step = Field(
        default=0,
        description="duplicates is the number of examples that repeat an earlier one. They are "
        "trained on.",
    )
    validation_examples: Step = Field(
        default=0, description="validationExamples is the number of held-out examples."
    )
    validation_rows: Step = Field(
        default=0, description="validationRows is the number of held-out packed rows."
    )
    validation_trained_tokens: Count = Field(
        default=0,
        description="validationTrainedTokens is the number of held-out tokens that carry loss.",
    )
    steps_per_epoch: Step | None = Field(
        default=None, description="stepsPerEpoch is the number of optimizer steps per epoch."
    )
    sources: list[SourceSummary] = Field(
        default_factory=list,
        max_length=16,
        description="sources describes each training source, in the order of dataset.train.",
    )
    ignored_columns: list[ColumnName] = Field(
        default_factory=list,
        max_length=20,
        description="ignoredColumns lists keys of the training rows, up to 20, that have no effect "
        "on what is trained.",
    )


MAX_PLAN_REASONS, PLAN_REASON_MAX = 5, 90
PlanReason = Annotated[str, Field(max_length=PLAN_REASON_MAX)]
ForwardPass = Literal["Rows", "Document"]
"""What one forward pass computes: packed rows, or one document of a row."""


class Plan(Message):
    """The training settings that were chosen where the spec leaves them unset.

    The plan is fixed at the first commit. Fields with a default were added later; the default is
    what earlier operators used.
    """

    zero_stage: int = Field(description="zeroStage is the ZeRO stage.")
    micro_batch_size: int = Field(
        description="microBatchSize is the number of rows per device and forward pass."
    )
    gradient_accumulation_steps: int = Field(
        description="gradientAccumulationSteps is the number of forward passes per optimizer step."
    )
    global_batch_size: int = Field(
        description="globalBatchSize is the number of rows per optimizer step over all devices."
    )
    learning_rate: float = Field(description="learningRate is the peak learning rate.")
    total_steps: int = Field(
        description="totalSteps is the number of optimizer steps of the whole run."
    )
    warmup_steps: int = Field(
        description="warmupSteps is the number of optimizer steps of the warm-up."
    )
    activation_checkpointing: Literal["Never", "Always"] = Field(
        default="Never",
        description="activationCheckpointing is whether activations are computed again in the "
        "backward pass.",
    )
    offload: Literal["None", "Optimizer", "OptimizerAndParameters"] = Field(
        default="None",
        description="offload is what is kept in host memory instead of on the device.",
    )
    forward_pass: ForwardPass | None = Field(
        default=None,
        description="forwardPass is what preparation found to be exact: Rows, or Document if the "
        "layers of the model do not keep packed documents apart. Then each forward pass is one "
        "document, and microBatchSize is 1.",
    )
    checkpoint_bytes: int = Field(
        description="checkpointBytes is the size of one checkpoint: 12 bytes per parameter, or 8 "
        "with moments in BF16."
    )
    device_type: str | None = Field(
        default=None,
        max_length=63,
        description="deviceType is the name of the device type in the operator's catalogue. It is "
        "unset if the type is not known.",
    )
    device_bytes: DeviceBytes | None = Field(
        default=None,
        description="deviceBytes is the computed memory of one device at its peak, by part. It is "
        "unset if the prepare pod could not measure the model.",
    )
    host_bytes_per_worker: Count | None = Field(
        default=None,
        description="hostBytesPerWorker is the computed memory that a worker needs on its host at "
        "its peak.",
    )
    reasons: list[PlanReason] | None = Field(
        default=None,
        max_length=MAX_PLAN_REASONS,
        description="reasons explains the choices, up to 5 sentences.",
    )


DeviceName = Annotated[str, AfterValidator(clean), Field(max_length=48)]


class Progress(Message):
    """The state of training after the last finished step."""

    step: Step = Field(description="step is the number of finished optimizer steps.")
    total_steps: Step = Field(
        description="totalSteps is the number of optimizer steps of the whole run."
    )
    epoch: float | None = Field(
        default=None, description="epoch is the number of passes over the data so far."
    )
    train_loss: float | None = Field(
        default=None,
        description="trainLoss is the loss of the last step in nats per trained token.",
    )
    learning_rate: float | None = Field(
        default=None, description="learningRate is the learning rate of the last step."
    )
    grad_norm: float | None = Field(
        default=None,
        description="gradNorm is the global L2 norm of the gradients before clipping.",
    )
    tokens_seen: Count = Field(
        default=0,
        description="tokensSeen is the number of tokens in all finished steps of the run.",
    )
    skipped_steps: Step = Field(
        default=0,
        description="skippedSteps is the number of steps that were not applied because their "
        "gradients were not finite.",
    )
    tokens_per_second: float | None = Field(
        default=None,
        description="tokensPerSecond is the number of packed tokens per second on all devices "
        "during the last minute.",
    )
    trained_tokens_per_second: float | None = Field(
        default=None,
        description="trainedTokensPerSecond is the number of tokens with loss per second on all "
        "devices during the last minute.",
    )
    mfu: float | None = Field(
        default=None,
        description="mfu is the model FLOPs utilization during the last minute, 0 to 1: the FLOPs "
        "that the steps need, divided by what the devices can do in dense bf16 according to their "
        "data sheet. It is unset for devices whose figure is unknown.",
    )
    device_memory_bytes: Count | None = Field(
        default=None,
        description="deviceMemoryBytes is the largest amount of device memory that a device of "
        "worker 0 has allocated so far. plan.deviceBytes is what was computed before. It is unset "
        "on CPUs.",
    )
    device_name: DeviceName | None = Field(
        default=None,
        description="deviceName is the name that the device of rank 0 reports, and its memory.",
    )
    eta_seconds: Count | None = Field(
        default=None, description="etaSeconds is the estimated number of seconds of training left."
    )
    last_update_time: Time | None = Field(
        default=None, description="lastUpdateTime is the time when the last step ended."
    )
    router_loss: float | None = Field(
        default=None,
        description="routerLoss is what the routers of a mixture of experts add to trainLoss in "
        "what is minimized: coefficient x auxiliary loss.",
    )
    unused_experts: Step | None = Field(
        default=None,
        description="unusedExperts is the number of experts that no token reached in 100 steps.",
    )
    checkpoint_problem: str | None = Field(
        default=None,
        max_length=512,
        description="checkpointProblem is why the newest save failed. Older checkpoints remain "
        "valid.",
    )
    kernel_problem: str | None = Field(
        default=None,
        max_length=MAX_KERNEL_PROBLEM,
        description="kernelProblem is which fused kernels are not used because a device computed "
        "something else with them, or failed. Training is slower, and right.",
    )

    _clean = field_validator("checkpoint_problem", "kernel_problem")(clean)


class Evaluation(Message):
    """Validation losses in nats per trained token."""

    baseline: float | None = Field(
        default=None, description="baseline is the validation loss before the first step."
    )
    last: float | None = Field(default=None, description="last is the newest validation loss.")
    last_step: Step | None = Field(
        default=None, description="lastStep is the step of the newest validation loss."
    )
    best: float | None = Field(
        default=None, description="best is the lowest validation loss, including the baseline."
    )
    best_step: Step | None = Field(
        default=None, description="bestStep is the step of the lowest validation loss."
    )


class CheckpointRecord(Message):
    """One published checkpoint on storage."""

    step: Step = Field(description="step is the optimizer step after which it was saved.")
    location: str = Field(
        max_length=LOCATION_MAX, description="location is its folder, as pvc://CLAIM/PATH."
    )
    creation_time: Time = Field(description="creationTime is the time when it was published.")
    size_bytes: Count = Field(description="sizeBytes is the size of its files in bytes.")
    verified: bool = Field(
        description="verified is true if it was read back from storage and equals its checksums. "
        "Only verified checkpoints are resumed from."
    )
    world_size: Step = Field(description="worldSize is the number of ranks that wrote it.")
    validation_loss: float | None = Field(
        default=None,
        description="validationLoss is the validation loss at its step in nats per trained token.",
    )

    _clean = field_validator("location")(clean)


class Output(Message):
    """The finished model folder."""

    location: str = Field(
        max_length=LOCATION_MAX, description="location is the folder, as pvc://CLAIM/PATH."
    )
    size_bytes: Count = Field(description="sizeBytes is the size of its files in bytes.")
    verified: bool = Field(
        description="verified is true if the model was loaded back with transformers and compared."
    )

    _clean = field_validator("location")(clean)


class StepLedger(Message):
    """The seconds that an attempt spent on steps. All devices run in step, so they count once."""

    productive_seconds: Seconds = Field(
        default=0.0,
        description="productiveSeconds is the time spent on steps that no earlier attempt had "
        "finished.",
    )
    redone_seconds: Seconds = Field(
        default=0.0,
        description="redoneSeconds is the time spent on steps that an earlier attempt had already "
        "finished.",
    )
    first_step: Step | None = Field(
        default=None, description="firstStep is the step that the attempt started from."
    )
    highest_step: Step | None = Field(
        default=None, description="highestStep is the highest finished step."
    )
