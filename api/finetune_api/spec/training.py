"""The parts of the spec that define what is computed and how it is distributed."""

import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, rules
from finetune_api.spec.common import Spec
from finetune_api.spec.use import Rows

Objective = Literal["SupervisedFineTuning", "ContinuedPretraining"]


_DEFAULT_EPOCHS = 3.0

MAX_LENGTH = 1_048_576
"""The largest training.sequenceLength."""


class Optimizer(Spec):
    """AdamW with fp32 master weights."""

    beta1: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="beta1 is the decay rate of the first moment, at least 0 and less than 1. "
        "Default: 0.9.",
    )
    beta2: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="beta2 is the decay rate of the second moment, at least 0 and less than 1. "
        "Default: 0.999, or 0.95 for the objective ContinuedPretraining.",
    )
    epsilon: float = Field(
        default=1.0e-8,
        gt=0,
        le=1,
        description="epsilon is the constant that is added to the denominator, greater than 0 and "
        "at most 1. Default: 1.0e-8.",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="weightDecay is the decoupled weight decay, 0 to 1. It never applies to norms, "
        "biases and embeddings. Default: 0.0.",
    )
    moment_precision: Literal["FP32", "BF16"] = Field(
        default="FP32",
        description="momentPrecision is the precision in which both moments are stored. BF16 saves "
        "4 bytes per parameter; the moments are rounded stochastically and the weights stay in "
        "fp32. Default: FP32.",
    )

    @property
    def state_bytes(self) -> int:
        """Bytes per parameter in a checkpoint: the fp32 master weight and two moments."""
        return 12 if self.moment_precision == "FP32" else 8


class Training(Spec):
    """What is computed: the objective, its length, the batch and the optimizer."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!(has(self.epochs) && has(self.maxSteps))",
                "set at most one of epochs and maxSteps; without both, training takes 3 epochs",
                ".maxSteps",
            ),
            Rule(
                "!(has(self.warmupRatio) && has(self.warmupSteps))",
                "set at most one of warmupRatio and warmupSteps; without both, warmupRatio is 0.03",
                ".warmupSteps",
            ),
        )
    )

    objective: Annotated[Objective, Rows.RESOLVED] = Field(
        default="SupervisedFineTuning",
        description="objective is the purpose of the training; it decides the defaults of other "
        "fields. ContinuedPretraining trains on every token (dataset.lossOn All), with twice the "
        "learning rate and optimizer.beta2 0.95. Default: SupervisedFineTuning.",
    )
    epochs: Annotated[float | None, Rows.UNRELATED] = Field(
        default=None,
        gt=0,
        le=1000,
        description="epochs is the number of passes over the training data, greater than 0 and at "
        "most 1000. It may be a fraction. Default: 3, unless maxSteps is set.",
    )
    max_steps: Annotated[int | None, Rows.UNRELATED] = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="maxSteps is the number of optimizer steps, 1 to 10000000. It is set instead "
        "of epochs. Default: unset.",
    )
    global_batch_size: Annotated[int | None, Rows.UNRELATED] = Field(
        default=None,
        ge=1,
        le=65536,
        description="globalBatchSize is the number of rows per optimizer step over all devices, 1 "
        "to 65536. A row holds sequenceLength tokens of packed examples, or one example if packing "
        "is false. Default: the largest of 8 to 64 that leaves 200 steps.",
    )
    sequence_length: Annotated[int, Rows.VALUE] = Field(
        default=4096,
        ge=16,
        le=MAX_LENGTH,
        description="sequenceLength is the number of tokens per row, 16 to 1048576. "
        "dataset.overlong selects what happens to longer examples. Default: 4096.",
    )
    packing: Annotated[bool, Rows.VALUE] = Field(
        default=True,
        description="packing fills each row with several examples. Examples in the same row do not "
        "attend to each other. Default: true.",
    )
    learning_rate: Annotated[float | None, Rows.UNRELATED] = Field(
        default=None,
        gt=0,
        le=1,
        description="learningRate is the peak learning rate, greater than 0 and at most 1. Write "
        "it with a dot (1.0e-5), or YAML reads it as a string. Default: 2.0e-5 below 2e9 "
        "parameters, 1.0e-5 up to 15e9 parameters, 5.0e-6 above; twice that for the objective "
        "ContinuedPretraining.",
    )
    schedule: Annotated[Literal["Cosine", "Linear", "Constant"], Rows.UNRELATED] = Field(
        default="Cosine",
        description="schedule is the shape of the learning rate after the warm-up. Default: "
        "Cosine.",
    )
    min_learning_rate_ratio: Annotated[float, Rows.UNRELATED] = Field(
        default=0.1,
        ge=0,
        le=1,
        description="minLearningRateRatio is the last learning rate of the schedules Cosine and "
        "Linear as a fraction of the peak, 0 to 1. Default: 0.1.",
    )
    warmup_ratio: Annotated[float | None, Rows.UNRELATED] = Field(
        default=None,
        ge=0,
        lt=1,
        description="warmupRatio is the fraction of all steps in which the learning rate rises "
        "from 0 to its peak, at least 0 and less than 1. Default: 0.03, unless warmupSteps is set.",
    )
    warmup_steps: Annotated[int | None, Rows.UNRELATED] = Field(
        default=None,
        ge=0,
        le=10_000_000,
        description="warmupSteps is the number of optimizer steps in which the learning rate rises "
        "from 0 to its peak, 0 to 10000000. It is set instead of warmupRatio. Default: unset.",
    )
    optimizer: Annotated[Optimizer, Rows.UNRELATED] = Field(
        default_factory=Optimizer, description="optimizer holds the constants of AdamW."
    )
    max_grad_norm: Annotated[float, Rows.UNRELATED] = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="maxGradNorm is the global L2 norm to which larger gradients are scaled down, "
        "greater than 0 and at most 1000. Default: 1.0.",
    )
    router_aux_loss: Annotated[float | None, Rows.UNRELATED] = Field(
        default=None,
        ge=0,
        le=10,
        description="routerAuxLoss is the coefficient of the auxiliary loss that keeps all experts "
        "of a mixture-of-experts model in use, 0 to 10; 0 trains without it. Default: "
        "router_aux_loss_coef of the model's config.json.",
    )
    precision: Annotated[Literal["BF16", "FP32"], Rows.UNRELATED] = Field(
        default="BF16",
        description="precision is the precision of the computation. BF16 computes in bf16 and "
        "keeps master weights, moments and accumulated gradients in fp32. FP32 computes everything "
        "in fp32. Default: BF16.",
    )
    seed: Annotated[int, Rows.UNRELATED] = Field(
        default=42,
        ge=0,
        le=2**31 - 1,
        description="seed is the seed of the row order and of dropout, 0 to 2147483647. Default: "
        "42.",
    )

    def rows_of_run(self, rows_per_epoch: int) -> int | None:
        """Return the rows of the complete run, or None if maxSteps determines its length.

        The operator derives the number of steps from it, and the trainer the last row.
        """
        if self.max_steps is not None:
            return None
        epochs = _DEFAULT_EPOCHS if self.epochs is None else self.epochs
        return math.ceil(epochs * rows_per_epoch)

    @property
    def beta2(self) -> float:
        """Decay rate of the second moment: the spec's, or the default of the objective."""
        if self.optimizer.beta2 is not None:
            return self.optimizer.beta2
        return 0.95 if self.objective == "ContinuedPretraining" else 0.999


class DeepSpeed(Spec):
    """How training is distributed over the devices. The computed result stays the same."""

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
        description="zeroStage is the ZeRO stage. Stage 1 partitions the optimizer states over the "
        "ranks, stage 2 also the gradients, stage 3 also the weights. Default: the smallest that "
        "fits and is not slower by estimate, or 2 if the device is not known.",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="microBatchSize is the number of rows that a device processes in one forward "
        "pass, 1 to 4096; 1 where status.plan.forwardPass is Document. Default: chosen by the "
        "planner, or 1 if the device is not known.",
    )
    activation_checkpointing: Literal["Auto", "Never", "Always"] | None = Field(
        default=None,
        description="activationCheckpointing selects whether activations are computed again in the "
        "backward pass instead of stored, which takes about a third more computation and a "
        "fraction of the memory. Auto means Always if the activations do not fit otherwise, or, "
        "if the device is not known, for models of at least 1e9 parameters. Default: Auto.",
    )
    offload: Literal["None", "Optimizer", "OptimizerAndParameters"] | None = Field(
        default=None,
        description="offload selects what is kept in host memory instead of on the device. "
        "Optimizer keeps the master weights and the moments there, and the CPU updates them; "
        "OptimizerAndParameters keeps the parameters there as well. Default: None, if the model "
        "fits into the devices without it.",
    )
