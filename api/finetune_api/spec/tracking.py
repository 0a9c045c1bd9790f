"""Where curves are drawn."""

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, rules
from finetune_api.spec.common import SecretRef, Spec

EACH_ONCE = Rule(
    "self.all(one, self.exists_one(other, other.type == one.type))",
    "name each type of tracker at most once",
)


class Tracker(Spec):
    """An experiment tracker that is told every step and every evaluation."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.type != 'TensorBoard' || !has(self.project) && !has(self.secretRef)",
                "TensorBoard writes files to <checkpoints.storage>/tensorboard and has neither "
                "project nor secretRef; remove them",
                ".type",
            )
        )
    )

    type: Literal["TensorBoard", "WandB", "MLflow"] = Field(
        description="TensorBoard: event files in <checkpoints.storage>/tensorboard. WandB: Weights "
        "& Biases, WANDB_API_KEY in its environment. MLflow: a tracking server, "
        "MLFLOW_TRACKING_URI in its environment."
    )
    project: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Project of WandB, experiment of MLflow. Absent: the job's namespace.",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret of this namespace whose keys become environment variables of the "
        "workers (WANDB_API_KEY, MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN, ...). The operator "
        "never reads it.",
    )
