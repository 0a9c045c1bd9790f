"""What is trained, and on what."""

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, rules
from finetune_api.spec.common import (
    CREDENTIALS_RULE,
    REVISION_RULE,
    Revision,
    SecretRef,
    SourceUri,
    Spec,
)

_WHOLE_DATA_SET = "'^hf://[^/]+/[^/]+/*$'"


class Model(Spec):
    """The model to start from."""

    model_config = ConfigDict(json_schema_extra=rules(REVISION_RULE, CREDENTIALS_RULE))

    source: SourceUri = Field(
        description="Hugging Face model folder (config.json, safetensors weights, tokenizer): "
        "pvc://CLAIM/PATH, hf://ORG/NAME[/PATH], s3://BUCKET/KEY or gs://BUCKET/KEY. What is not "
        "on a claim is downloaded once into the cache."
    )
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or commit of an hf:// model. Absent: main. The commit it was "
        "resolved to is in status.resolved.modelRevision.",
    )
    credentials_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become environment variables of the prepare pod: HF_TOKEN, "
        "AWS_ACCESS_KEY_ID, ... The operator never reads it.",
    )


class DataSource(Spec):
    """One file of examples."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            REVISION_RULE,
            CREDENTIALS_RULE,
            Rule(
                f"!has(self.split) || self.source.matches({_WHOLE_DATA_SET}) && "
                "self.split.matches('^[A-Za-z0-9_]+([-.][A-Za-z0-9_]+)*$')",
                "must be the name of one whole split, for example train, and only of hf://ORG/NAME "
                "without a path; elsewhere remove it",
                ".split",
            ),
        )
    )

    source: SourceUri = Field(
        description="JSON Lines (.jsonl, one example a line) or JSON (.json, a list of examples), "
        "UTF-8, optionally .gz: pvc://CLAIM/PATH, hf://ORG/NAME[/PATH], s3://BUCKET/KEY or "
        "gs://BUCKET/KEY. hf://ORG/NAME alone is the split of a data set."
    )
    split: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Split of the data set hf://ORG/NAME. Absent: train; validation names one.",
    )
    revision: Revision | None = Field(
        default=None, description="Branch, tag or commit of an hf:// data set. Absent: main."
    )
    credentials_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become environment variables of the prepare pod: HF_TOKEN, "
        "AWS_ACCESS_KEY_ID, ... The operator never reads it.",
    )
    format: Literal["Auto", "Messages", "PromptCompletion"] = Field(
        default="Auto",
        description="Shape of the examples. Messages: {messages: [{role, content}]}. "
        "PromptCompletion: {prompt, completion}. Auto (the default) takes the shape of the first "
        "row; a later row of another shape is an error.",
    )


class Dataset(Spec):
    """What to learn from and what to measure on."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.validation) || self.validation.all(v, has(v.split) || "
                f"!v.source.matches({_WHOLE_DATA_SET}))",
                "name the split of each hf://ORG/NAME in validation, for example validation or "
                "test: the default, train, is what is trained on",
                ".validation",
            )
        )
    )

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
