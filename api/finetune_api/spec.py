"""FineTuneJobSpec, version v1alpha1: what a user asks for.

A field is here because it works. Descriptions become `kubectl explain`, so each gives unit and
default. A rule sits on the narrowest object that holds what it reads (rules at the root are
evaluated on every write and would, once tightened, block stored objects).
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from finetune_api.base import Message
from finetune_api.schema import Rule, opaque, rules

URI_RULE = Rule(
    "self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[^?#]+$') && "
    "!self.matches('(^|/)[.][.](/|$)') && !self.matches('^pvc://[^/]+(/[.]?)*$')",
    "must be pvc://CLAIM/PATH (a path on a PersistentVolumeClaim of this namespace) without '..'",
)
Uri = Annotated[str, Field(min_length=1, max_length=512, json_schema_extra=rules(URI_RULE))]
# Shorter: it stands in the status of every checkpoint, and a status has 32 kB.
StorageUri = Annotated[str, Field(min_length=1, max_length=256, json_schema_extra=rules(URI_RULE))]


class Spec(Message):
    """Base of the parts of the spec: an unknown field is an error when we write one."""

    model_config = ConfigDict(extra="forbid")


class Model(Spec):
    """The model to start from."""

    source: Uri = Field(
        description="Hugging Face model folder (config.json, safetensors weights, tokenizer): "
        "pvc://CLAIM/PATH."
    )


class DataSource(Spec):
    """One file of examples."""

    source: Uri = Field(
        description="JSON Lines (.jsonl, one example a line) or JSON (.json, a list of examples), "
        "UTF-8, optionally .gz: pvc://CLAIM/PATH."
    )
    format: Literal["Auto", "Messages", "PromptCompletion"] = Field(
        default="Auto",
        description="Shape of the examples. Messages: {messages: [{role, content}]}. "
        "PromptCompletion: {prompt, completion}. Auto (the default) takes the shape of the first "
        "row; a later row of another shape is an error.",
    )


class Dataset(Spec):
    """What to learn from and what to measure on."""

    train: list[DataSource] = Field(
        min_length=1, max_length=16, description="Training examples; sources are mixed by size."
    )
    validation: list[DataSource] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Held-out examples; the loss on them is measured before the first step and "
        "after the last one. Absent: no validation loss.",
    )
    loss_on: Literal["Assistant", "LastAssistant", "Completion", "All"] | None = Field(
        default=None,
        description="Tokens that are trained on. Assistant: every assistant turn. LastAssistant: "
        "the last one. Completion: the completion. All: everything. Absent: Assistant for "
        "Messages, Completion for PromptCompletion.",
    )


class Optimizer(Spec):
    """AdamW with fp32 master weights and fp32 moments."""

    beta1: float = Field(
        default=0.9, ge=0, lt=1, description="Decay of the first moment, default 0.9."
    )
    beta2: float = Field(
        default=0.999, ge=0, lt=1, description="Decay of the second moment, default 0.999."
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
        description="Tokens per row, default 4096; a longer example is dropped and counted.",
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
        "parameters, 1.0e-5 up to 15e9, 5.0e-6 above.",
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


class DeepSpeed(Spec):
    """How it is computed; the result is the same mathematics. May change while Suspended."""

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


TEMPLATE_SCHEMA: dict[str, Any] = opaque(
    metadata=opaque(),
    spec=opaque(
        restartPolicy={"type": "string", "maxLength": 64},
        hostname={"type": "string", "maxLength": 64},
        subdomain={"type": "string", "maxLength": 64},
        terminationGracePeriodSeconds={"type": "integer"},
        containers={
            "type": "array",
            "maxItems": 16,
            "items": opaque(
                name={"type": "string", "maxLength": 63},
                command={
                    "type": "array",
                    "maxItems": 64,
                    "items": {"type": "string", "maxLength": 4096},
                },
                args={
                    "type": "array",
                    "maxItems": 64,
                    "items": {"type": "string", "maxLength": 4096},
                },
            ),
        },
    ),
) | rules(
    *(
        Rule(
            f"!has(self.spec) || !has(self.spec.{field})",
            f"template.spec.{field} is set by the operator; remove it",
            f".spec.{field}",
        )
        for field in ("restartPolicy", "hostname", "subdomain", "terminationGracePeriodSeconds")
    ),
    Rule(
        "!has(self.spec) || !has(self.spec.containers) || self.spec.containers.all(c, "
        "has(c.name) && (c.name != 'trainer' || !has(c.command) && !has(c.args)))",
        "every container needs a name, and command and args of the container 'trainer' are set "
        "by the operator; remove them",
        ".spec.containers",
    ),
)


class Workers(Spec):
    """The gang: pods that train and restart together. May change while Suspended."""

    replicas: int = Field(default=1, ge=1, le=4096, description="Pods, one per node, default 1.")
    devices_per_worker: int = Field(
        default=1, ge=1, le=64, description="Devices, and processes, per pod, default 1."
    )
    device_resource: str = Field(
        default="nvidia.com/gpu",
        min_length=3,
        max_length=253,
        description="Extended resource that a device is, default nvidia.com/gpu.",
        json_schema_extra=rules(
            Rule(
                "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')",
                "must be the name of an extended resource, DOMAIN/NAME, for example nvidia.com/gpu",
            )
        ),
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="Trainer image. Absent: the one the operator was installed with; it is frozen "
        "in status.resolved with the first attempt.",
    )
    template: dict[str, Any] | None = Field(
        default=None,
        description="PodTemplateSpec merged under the operator's own fields: nodeSelector, "
        "tolerations, resources, volumes, sidecars, ... The trainer container is the one named "
        "'trainer'.",
        json_schema_extra=TEMPLATE_SCHEMA,
    )


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
        description="Checkpoints kept, default 2; the newest verified one is never deleted.",
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


class Scheduling(Spec):
    """How the pods of the gang are scheduled."""

    priority_class_name: str = Field(
        min_length=1,
        max_length=253,
        description="PriorityClass of the workers: what they may preempt, and what preempts them.",
    )


class FineTuneJobSpec(Spec):
    """A full fine-tune of one model on one data set."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.training.globalBatchSize) || self.training.globalBatchSize % "
                "(self.workers.replicas * self.workers.devicesPerWorker * (has(self.deepspeed) && "
                "has(self.deepspeed.microBatchSize) ? self.deepspeed.microBatchSize : 1)) == 0",
                "training.globalBatchSize must be divisible by workers.replicas x "
                "workers.devicesPerWorker x deepspeed.microBatchSize",
                ".training.globalBatchSize",
            )
        )
    )

    model: Model
    dataset: Dataset
    training: Training = Field(default_factory=Training)
    deepspeed: DeepSpeed | None = None
    workers: Workers = Field(default_factory=Workers)
    checkpoints: Checkpoints
    cache: Uri | None = Field(
        default=None,
        description="Folder for prepared data, shared by the jobs that name it: pvc://CLAIM/PATH. "
        "Absent: the folder cache in checkpoints.storage.",
    )
    run_policy: RunPolicy = Field(default_factory=RunPolicy)
    scheduling: Scheduling | None = None
    suspend: bool = Field(
        default=False,
        description="True stops the job: the gang saves a checkpoint and every pod goes, until it "
        "is false again. Only while condition Suspended is True may workers, deepspeed and "
        "scheduling change. Default false.",
    )

    @property
    def world_size(self) -> int:
        """Processes of the gang."""
        return self.workers.replicas * self.workers.devices_per_worker
