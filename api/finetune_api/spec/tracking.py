"""The part of the spec that names experiment trackers."""

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, rules
from finetune_api.spec.common import CONTROLS, SecretRef, Spec

EACH_ONCE = Rule(
    "self.all(one, self.exists_one(other, other.type == one.type))",
    "name each type of tracker at most once",
)


class Tracker(Spec):
    """An experiment tracker that receives the figures of every step and every evaluation."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.type != 'TensorBoard' || !has(self.project) && !has(self.secretRef)",
                "TensorBoard writes files to <checkpoints.storage>/tensorboard and uses neither "
                "project nor secretRef; remove them",
                ".type",
            )
        )
    )

    type: Literal["TensorBoard", "WandB", "MLflow"] = Field(
        description="type selects the tracker. TensorBoard writes event files to "
        "<checkpoints.storage>/tensorboard. WandB sends to Weights & Biases and needs the "
        "environment variable WANDB_API_KEY. MLflow sends to a tracking server and needs the "
        "environment variable MLFLOW_TRACKING_URI."
    )
    project: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="project is the project of WandB or the experiment of MLflow, at most 128 "
        "characters. Default: the namespace of the job.",
        json_schema_extra=rules(
            Rule(
                f"self.matches(r'^[^{CONTROLS}]+$')",
                "must not contain line breaks, marks of direction and other control characters",
            )
        ),
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="secretRef refers to the Secret whose keys become environment variables of the "
        "workers: WANDB_API_KEY, MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN, ... The operator "
        "never reads it.",
    )
