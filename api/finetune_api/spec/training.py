"""What the mathematics is, and how it is computed."""

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, rules
from finetune_api.spec.common import Spec


class Optimizer(Spec):
    """AdamW with fp32 master weights and fp32 moments."""

    beta1: float = Field(
        default=0.9, ge=0, lt=1, description="Decay of the first moment, default 0.9."
    )
    beta2: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Decay of the second moment. Absent: 0.999, for ContinuedPretraining 0.95.",
    )
    epsilon: float = Field(
        default=1.0e-8, gt=0, le=1, description="Added to the denominator, default 1.0e-8."
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Decoupled weight decay, default 0.0; never applied to norms, biases and "
        "embeddings.",
    )
    moment_precision: Literal["FP32", "BF16"] = Field(
        default="FP32",
        description="How both moments are kept, default FP32. BF16 saves 4 bytes a parameter; they "
        "are then rounded stochastically, and the weights stay fp32.",
    )

    @property
    def state_bytes(self) -> int:
        """Bytes a parameter in a checkpoint: fp32 master weight and two moments."""
        return 12 if self.moment_precision == "FP32" else 8


class Training(Spec):
    """What the mathematics is. Frozen once the first attempt was committed."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!(has(self.epochs) && has(self.maxSteps))",
                "set at most one of epochs and maxSteps; neither means 3 epochs",
                ".maxSteps",
            ),
            Rule(
                "!(has(self.warmupRatio) && has(self.warmupSteps))",
                "set at most one of warmupRatio and warmupSteps; neither means warmupRatio 0.03",
                ".warmupSteps",
            ),
        )
    )

    objective: Literal["SupervisedFineTuning", "ContinuedPretraining"] = Field(
        default="SupervisedFineTuning",
        description="What the data is for, which decides what absent fields mean. "
        "ContinuedPretraining trains on every token (dataset.lossOn All), with twice the learning "
        "rate and optimizer.beta2 0.95. SupervisedFineTuning is the default.",
    )
    epochs: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Passes over the training data, may be a fraction. Absent, and maxSteps "
        "absent too: 3.",
    )
    max_steps: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Optimizer steps, instead of epochs."
    )
    global_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Rows per optimizer step over all devices (a row is sequenceLength tokens of "
        "packed examples, or one example when packing is off). Absent: the largest of 8 to 64 "
        "that leaves 200 steps.",
    )
    sequence_length: int = Field(
        default=4096,
        ge=16,
        le=1_048_576,
        description="Tokens per row, default 4096; dataset.overlong says what becomes of a longer "
        "example.",
    )
    packing: bool = Field(
        default=True,
        description="Fill rows with several examples, default true. Examples in one row do not "
        "see each other.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Peak learning rate; write it with a dot (1.0e-5). Absent: 2.0e-5 below 2e9 "
        "parameters, 1.0e-5 up to 15e9, 5.0e-6 above; for ContinuedPretraining twice that.",
    )
    schedule: Literal["Cosine", "Linear", "Constant"] = Field(
        default="Cosine", description="Shape of the learning rate after warm-up, default Cosine."
    )
    min_learning_rate_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Where Cosine and Linear end, as a share of the peak, default 0.1.",
    )
    warmup_ratio: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of all steps in which the learning rate rises from 0. Absent, and "
        "warmupSteps absent too: 0.03.",
    )
    warmup_steps: int | None = Field(
        default=None, ge=0, le=10_000_000, description="Steps of warm-up, instead of warmupRatio."
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="AdamW and its constants.")
    max_grad_norm: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Gradients are scaled down to this global L2 norm, default 1.0.",
    )
    precision: Literal["BF16", "FP32"] = Field(
        default="BF16",
        description="BF16 (the default): bf16 compute, fp32 master weights, moments and gradient "
        "accumulation. FP32: everything in fp32.",
    )
    seed: int = Field(
        default=42, ge=0, le=2**31 - 1, description="Seed of row order and dropout, default 42."
    )

    @property
    def beta2(self) -> float:
        """Decay of the second moment, chosen by the objective where the spec names none."""
        if self.optimizer.beta2 is not None:
            return self.optimizer.beta2
        return 0.95 if self.objective == "ContinuedPretraining" else 0.999


class DeepSpeed(Spec):
    """How it is computed; the result is the same mathematics. May change while Suspended."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.offload) || self.offload == 'None' || !has(self.zeroStage) && "
                "self.offload == 'Optimizer' || has(self.zeroStage) && self.zeroStage >= "
                "(self.offload == 'Optimizer' ? 2 : 3)",
                "offload Optimizer needs zeroStage 2 or 3, OptimizerAndParameters needs 3",
                ".offload",
            )
        )
    )

    zero_stage: Literal[1, 2, 3] | None = Field(
        default=None,
        description="ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 weights too. "
        "Absent: 2.",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Rows per device and forward pass. Absent: 1.",
    )
    activation_checkpointing: Literal["Auto", "Never", "Always"] | None = Field(
        default=None,
        description="Always: activations of a layer are computed again in the backward pass, about "
        "a third more compute for a fraction of the memory. Absent or Auto: Always from 1e9 "
        "parameters on.",
    )
    offload: Literal["None", "Optimizer", "OptimizerAndParameters"] | None = Field(
        default=None,
        description="What is kept in host memory instead of on the device. Optimizer: master "
        "weights and moments, updated by the CPU. Absent: None.",
    )
