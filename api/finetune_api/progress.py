"""Facts that the trainer measures and the status shows: the same models on both sides."""

from typing import Literal

from pydantic import Field, field_validator

from finetune_api.base import Count, Message, Rows, Seconds, Step, Time, clean

Stage = Literal[
    "PreparingData", "LoadingModel", "Training", "Evaluating", "Checkpointing", "Exporting"
]


# checkpoints.storage (256) and what the trainer adds to it, checkpoints/step-00000400-e0002.
LOCATION_MAX = 300


class SourceSummary(Message):
    """One training source after preparation."""

    source: str = Field(max_length=512)
    rows: Step
    examples: Step
    passes: float | None = Field(default=None, description="How often it is seen in the whole run.")

    _clean = field_validator("source")(clean)


class DataSummary(Message):
    """What preparation made of the training data."""

    examples: Step = Field(description="Examples that are trained on.")
    rows: Rows = Field(description="Packed rows.")
    epoch_rows: Rows | None = Field(
        default=None,
        description="Rows of one epoch: more than rows where weights make small sources repeat.",
    )
    tokens: Count = Field(description="Tokens in all rows.")
    trained_tokens: Count = Field(description="Tokens that carry loss.")
    packing_efficiency: float = Field(description="Tokens / (rows x sequenceLength).")
    dropped_overlong: Step = Field(
        default=0, description="Examples left out, longer than sequenceLength."
    )
    truncated: Step = Field(default=0, description="Examples whose end was cut off.")
    split: Step = Field(default=0, description="Documents that were cut into several.")
    dropped_empty: Step = Field(default=0, description="Examples left out, without any text.")
    dropped_untrained: Step = Field(
        default=0, description="Examples left out, none of their tokens is trained."
    )
    invalid: Step = Field(
        default=0, description="Examples left out, the chat template cannot render them."
    )
    duplicates: Step = Field(
        default=0, description="Examples that repeat an earlier one; they are trained on."
    )
    validation_examples: Step = Field(default=0, description="Held-out examples.")
    validation_rows: Step = Field(default=0, description="Held-out rows.")
    validation_trained_tokens: Count = Field(
        default=0, description="Held-out tokens that carry loss."
    )
    steps_per_epoch: Step | None = Field(default=None, description="Optimizer steps per pass.")
    sources: list[SourceSummary] = Field(default_factory=list, max_length=16)


class Plan(Message):
    """What was chosen where the spec left it open. Frozen with the first attempt."""

    zero_stage: int = Field(description="ZeRO stage.")
    micro_batch_size: int = Field(description="Rows per device and forward pass.")
    gradient_accumulation_steps: int = Field(description="Forward passes per optimizer step.")
    global_batch_size: int = Field(description="Rows per optimizer step.")
    learning_rate: float = Field(description="Peak learning rate.")
    total_steps: int = Field(description="Optimizer steps of the whole run.")
    warmup_steps: int = Field(description="Steps of warm-up.")
    activation_checkpointing: Literal["Never", "Always"] = Field(
        default="Never", description="Whether activations are computed again."
    )
    offload: Literal["None", "Optimizer", "OptimizerAndParameters"] = Field(
        default="None", description="What is kept in host memory."
    )
    checkpoint_bytes: int = Field(
        description="Size of one checkpoint: 12 bytes a parameter, 8 with moments in BF16."
    )


class Progress(Message):
    """Where training stands after the last finished step."""

    step: Step = Field(description="Finished optimizer steps.")
    total_steps: Step = Field(description="Steps of the whole run.")
    epoch: float | None = Field(default=None, description="Passes over the data so far.")
    train_loss: float | None = Field(
        default=None, description="Loss of the last step, nats per trained token."
    )
    learning_rate: float | None = Field(default=None, description="Learning rate of the last step.")
    grad_norm: float | None = Field(default=None, description="Global L2 norm before clipping.")
    tokens_seen: Count = Field(default=0, description="Tokens of all finished steps of the run.")
    skipped_steps: Step = Field(
        default=0, description="Steps that were not applied: non-finite gradients."
    )
    tokens_per_second: float | None = Field(
        default=None, description="Packed tokens, all devices, last minute."
    )
    trained_tokens_per_second: float | None = Field(
        default=None, description="Tokens with loss, last minute."
    )
    mfu: float | None = Field(
        default=None,
        description="FLOPs that the steps of the last minute need / what the devices can do in "
        "dense bf16 by their data sheet, 0 to 1. Absent where that is unknown.",
    )
    eta_seconds: Count | None = Field(
        default=None, description="Estimated seconds of training left."
    )
    last_update_time: Time | None = Field(default=None, description="When the last step ended.")
    checkpoint_problem: str | None = Field(
        default=None,
        max_length=512,
        description="Why the newest save failed; the older checkpoints stand.",
    )

    _clean = field_validator("checkpoint_problem")(clean)


class Evaluation(Message):
    """Validation loss in nats per trained token."""

    baseline: float | None = Field(default=None, description="Before the first step.")
    last: float | None = Field(default=None, description="Newest.")
    last_step: Step | None = Field(default=None, description="Step of the newest.")
    best: float | None = Field(default=None, description="Lowest, the baseline included.")
    best_step: Step | None = Field(default=None, description="Step of the lowest.")


class CheckpointRecord(Message):
    """One published checkpoint on storage."""

    step: Step
    location: str = Field(max_length=LOCATION_MAX)
    creation_time: Time
    size_bytes: Count
    verified: bool = Field(description="Read back from storage and equal to its checksums.")
    world_size: Step
    validation_loss: float | None = None

    _clean = field_validator("location")(clean)


class Output(Message):
    """The finished model folder."""

    location: str = Field(max_length=LOCATION_MAX)
    size_bytes: Count
    verified: bool = Field(description="Loaded back with transformers and compared.")

    _clean = field_validator("location")(clean)


class StepLedger(Message):
    """What an attempt spent its time on, in seconds of one device (all devices run in step)."""

    productive_seconds: Seconds = Field(
        default=0.0, description="Steps no earlier attempt had reached."
    )
    redone_seconds: Seconds = Field(
        default=0.0, description="Steps an earlier attempt had already reached."
    )
    first_step: Step | None = Field(default=None, description="Step the attempt started from.")
    highest_step: Step | None = Field(default=None, description="Highest finished step.")
