"""FineTuneJobSpec, version v1alpha1: what a user asks for.

A field is added together with the code that makes it work. Its description is what `kubectl
explain` shows and names unit, default and bounds. A CEL rule belongs to the narrowest object that
contains what it reads: the rules of the root are evaluated on every write, so a rule that is
tightened there would block the objects that are already stored.
"""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, rules
from finetune_api.spec.common import SecretRef, Spec, Uri
from finetune_api.spec.data import ChatTemplate, Columns, Dataset, DataSource, Model, TrainSource
from finetune_api.spec.policy import Checkpoints, EarlyStopping, Evaluation, Output, RunPolicy
from finetune_api.spec.tracking import EACH_ONCE, Tracker
from finetune_api.spec.training import DeepSpeed, Optimizer, Training
from finetune_api.spec.use import GANG, INPUT, OPERATOR_SETTING, TRAINER_SETTING, WORKER_SETTING
from finetune_api.spec.workers import Prepare, Scheduling, Workers

__all__ = [
    "ChatTemplate",
    "Checkpoints",
    "Columns",
    "DataSource",
    "Dataset",
    "DeepSpeed",
    "EarlyStopping",
    "Evaluation",
    "FineTuneJobSpec",
    "Model",
    "Optimizer",
    "Output",
    "Prepare",
    "RunPolicy",
    "Scheduling",
    "SecretRef",
    "Tracker",
    "TrainSource",
    "Training",
    "Workers",
]


def _apart(written: str, present: str) -> Rule:
    """Return the rule that a folder of the run is not a folder of an input, nor is in one.

    It holds for new jobs only. The operator checks the same after edits, and also knows the forms
    of an address that differ from each other.
    """
    inputs = (
        "[self.model.source] + self.dataset.train.map(t, t.source) + "
        "(has(self.dataset.validation) ? self.dataset.validation.map(v, v.source) : [])"
    )
    folder = f"(self.{written} + '/')"
    return Rule(
        f"oldSelf.hasValue() || {present}({inputs}).all(i, "
        f"!{folder}.startsWith(i.endsWith('/') ? i : i + '/'))",
        f"{written} must not be the folder of the model or of data, nor be in one",
        f".{written}",
        optional_old_self=True,
    )


class FineTuneJobSpec(Spec):
    """The desired full fine-tuning of one model on one data set."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _apart("checkpoints.storage", ""),
            _apart("cache", "!has(self.cache) || "),
            Rule(
                "!has(self.training.globalBatchSize) || self.training.globalBatchSize % "
                "(self.workers.replicas * self.workers.devicesPerWorker * (has(self.deepspeed) && "
                "has(self.deepspeed.microBatchSize) ? self.deepspeed.microBatchSize : 1)) == 0",
                "training.globalBatchSize must be divisible by workers.replicas x "
                "workers.devicesPerWorker x deepspeed.microBatchSize",
                ".training.globalBatchSize",
            ),
            Rule(
                "!has(self.evaluation) || has(self.dataset.validation) || "
                "has(self.dataset.validationFraction)",
                "evaluation needs validation data: set dataset.validation or "
                "dataset.validationFraction, or remove evaluation",
                ".evaluation",
            ),
            Rule(
                "!has(self.output) || !has(self.output.weights) || self.output.weights != 'Best' "
                "|| has(self.dataset.validation) || has(self.dataset.validationFraction)",
                "output.weights Best needs validation data: set dataset.validation or "
                "dataset.validationFraction, or use Last",
                ".output.weights",
            ),
        )
    )

    model: Annotated[Model, INPUT] = Field(
        description="model is the model that training starts from. It cannot change after the "
        "first attempt was committed."
    )
    dataset: Annotated[Dataset, INPUT] = Field(
        description="dataset is the data to train on and to validate with. It cannot change after "
        "the first attempt was committed."
    )
    training: Annotated[Training, INPUT] = Field(
        default_factory=Training,
        description="training defines what is computed: the objective, its length, the batch and "
        "the optimizer. It cannot change after the first attempt was committed.",
    )
    deepspeed: Annotated[DeepSpeed | None, GANG] = Field(
        default=None,
        description="deepspeed defines how training is distributed over the devices. It affects "
        "speed and memory only. After the first attempt was committed, it can change only while "
        "condition Suspended is True.",
    )
    workers: Annotated[Workers, GANG] = Field(
        default_factory=Workers,
        description="workers describes the gang: the pods that start, train and restart together. "
        "After the first attempt was committed, it can change only while condition Suspended is "
        "True.",
    )
    prepare: Annotated[Prepare | None, OPERATOR_SETTING] = Field(
        default=None,
        description="prepare describes the pod that downloads, checks and prepares the inputs "
        "before a gang exists. It can change at any time.",
    )
    checkpoints: Checkpoints = Field(
        description="checkpoints defines where the run is stored and how often it is saved."
    )
    cache: Annotated[Uri | None, INPUT] = Field(
        default=None,
        description="cache is the folder for downloads and prepared data, as pvc://CLAIM/PATH of "
        "at most 512 characters. Jobs that name the same folder share it. It cannot change after "
        "the first attempt was committed. Default: the folder cache in checkpoints.storage.",
    )
    output: Annotated[Output | None, TRAINER_SETTING] = Field(
        default=None,
        description="output defines which weights become the finished model, and their type.",
    )
    evaluation: Annotated[Evaluation | None, TRAINER_SETTING] = Field(
        default=None,
        description="evaluation defines when the validation loss is measured, besides before the "
        "first step, after the last step and with every checkpoint. It needs validation data.",
    )
    run_policy: RunPolicy = Field(
        default_factory=RunPolicy,
        description="runPolicy defines how long the operator waits, when it gives up and what it "
        "cleans up. It can change at any time.",
    )
    tracking: Annotated[list[Tracker] | None, WORKER_SETTING] = Field(
        default=None,
        min_length=1,
        max_length=3,
        description="tracking lists 1 to 3 experiment trackers. The id of the tracked run is the "
        "uid of the job, so that all attempts form one curve. A tracker that fails or hangs never "
        "fails the job. It can change at any time; a change takes effect with the next attempt. "
        "Default: TensorBoard.",
        json_schema_extra=rules(EACH_ONCE),
    )
    scheduling: Annotated[Scheduling | None, GANG] = Field(
        default=None,
        description="scheduling defines how the workers are scheduled. After the first attempt "
        "was committed, it can change only while condition Suspended is True.",
    )
    suspend: Annotated[bool, OPERATOR_SETTING] = Field(
        default=False,
        description="suspend stops the job while it is true: the gang saves a checkpoint and "
        "every pod is deleted. The job resumes from that checkpoint when it is set to false. "
        "workers, deepspeed and scheduling can change once condition Suspended is True. Default: "
        "false.",
    )

    @property
    def world_size(self) -> int:
        """Number of ranks of the gang."""
        return self.workers.replicas * self.workers.devices_per_worker
