"""FineTuneJobSpec, version v1alpha1: what a user asks for.

A field is here because it works. Descriptions become `kubectl explain`, so each gives unit and
default. A rule sits on the narrowest object that holds what it reads (rules at the root are
evaluated on every write and would, once tightened, block stored objects).
"""

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, rules
from finetune_api.spec.common import SecretRef, Spec, Uri
from finetune_api.spec.data import ChatTemplate, Columns, Dataset, DataSource, Model, TrainSource
from finetune_api.spec.policy import Checkpoints, EarlyStopping, Evaluation, Output, RunPolicy
from finetune_api.spec.tracking import EACH_ONCE, Tracker
from finetune_api.spec.training import DeepSpeed, Optimizer, Training
from finetune_api.spec.workers import Scheduling, Workers

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
    "RunPolicy",
    "Scheduling",
    "SecretRef",
    "Tracker",
    "TrainSource",
    "Training",
    "Workers",
]


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
            ),
            Rule(
                "!has(self.evaluation) || has(self.dataset.validation) || "
                "has(self.dataset.validationFraction)",
                "evaluation needs validation data: set dataset.validation or validationFraction",
                ".evaluation",
            ),
            Rule(
                "!has(self.output) || !has(self.output.weights) || self.output.weights != 'Best' "
                "|| has(self.dataset.validation) || has(self.dataset.validationFraction)",
                "output.weights Best needs validation data: set dataset.validation or "
                "validationFraction, or use Last",
                ".output.weights",
            ),
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
    output: Output | None = None
    evaluation: Evaluation | None = None
    run_policy: RunPolicy = Field(default_factory=RunPolicy)
    tracking: list[Tracker] | None = Field(
        default=None,
        min_length=1,
        max_length=3,
        description="Experiment trackers; the run's id is the job's uid, so that all attempts are "
        "one curve. One that fails or hangs never fails the job. May change at any time; a change "
        "counts from the next attempt on. Absent: TensorBoard.",
        json_schema_extra=rules(EACH_ONCE),
    )
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
