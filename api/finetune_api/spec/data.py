"""What is trained, and on what."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, rules
from finetune_api.spec.common import (
    CREDENTIALS_RULE,
    REVISION_RULE,
    Revision,
    SecretRef,
    SourceUri,
    Spec,
    Uri,
)

_WHOLE_DATA_SET = "'^hf://[^/]+/[^/]+/*$'"

Column = Annotated[str, Field(min_length=1, max_length=128)]


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


class Columns(Spec):
    """Names of columns and message keys where they are not the usual ones."""

    messages: Column | None = Field(default=None, description="List of messages; usual: messages.")
    role: Column | None = Field(default=None, description="Who speaks, in a message; usual: role.")
    content: Column | None = Field(
        default=None, description="What is said, in a message; usual: content."
    )
    tools: Column | None = Field(default=None, description="Tools on offer; usual: tools.")
    prompt: Column | None = Field(default=None, description="Untrained part; usual: prompt.")
    completion: Column | None = Field(default=None, description="Trained part; usual: completion.")
    instruction: Column | None = Field(
        default=None, description="Alpaca's task; usual: instruction."
    )
    input: Column | None = Field(default=None, description="Alpaca's input; usual: input.")
    output: Column | None = Field(default=None, description="Alpaca's answer; usual: output.")
    text: Column | None = Field(default=None, description="A document; usual: text.")


class DataSource(Spec):
    """Files of examples."""

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
        description="A file, a folder (every data file below it) or a glob (*, **, [ab]): "
        ".jsonl (one example a line), .json (a list of examples) and .csv, each optionally .gz, "
        ".parquet, .arrow; UTF-8; one type a source: pvc://CLAIM/PATH, hf://ORG/NAME[/PATH], "
        "s3://BUCKET/KEY or gs://BUCKET/KEY. hf://ORG/NAME alone is the split of a data set."
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
    format: Literal["Auto", "Messages", "PromptCompletion", "Text"] = Field(
        default="Auto",
        description="Shape of the examples. Messages: {messages: [{role, content}]}, or ShareGPT "
        "{conversations: [{from, value}]}. PromptCompletion: {prompt, completion}, or Alpaca "
        "{instruction, input, output}. Text: {text}. Auto (the default) takes the shape of the "
        "first row; a later row of another shape is an error.",
    )
    columns: Columns | None = Field(
        default=None, description="Names of columns where they are not the usual ones."
    )


class TrainSource(DataSource):
    """Files of examples to train on."""

    weight: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Share of the packed rows, relative to the other weights; all sources have one "
        "or none has. Absent: every row of every source once an epoch.",
    )


class ChatTemplate(Spec):
    """A Jinja chat template, instead of the tokenizer's."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("has(self.inline) != has(self.path)", "set exactly one of inline and path")
        )
    )

    inline: str | None = Field(
        default=None, min_length=1, max_length=32768, description="The template itself."
    )
    path: Uri | None = Field(
        default=None, description="File with the template, UTF-8: pvc://CLAIM/PATH."
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
            ),
            Rule(
                "!(has(self.validation) && has(self.validationFraction))",
                "set at most one of validation and validationFraction",
                ".validationFraction",
            ),
        )
    )

    train: list[TrainSource] = Field(
        min_length=1,
        max_length=16,
        description="Training examples; without weights, sources are mixed by size.",
        json_schema_extra=rules(
            Rule(
                "self.all(s, has(s.weight)) || !self.exists(s, has(s.weight))",
                "give every source a weight, or none",
            )
        ),
    )
    validation: list[DataSource] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Held-out examples; the loss on them is measured before the first step and "
        "after the last one. Absent, and validationFraction absent too: no validation loss.",
    )
    validation_fraction: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="Share of the training examples that is held out instead of trained on, chosen "
        "by a hash of each example: copies of one example stay on one side.",
    )
    loss_on: Literal["Assistant", "LastAssistant", "Completion", "All"] | None = Field(
        default=None,
        description="Tokens that are trained on. Assistant: every assistant turn. LastAssistant: "
        "the last one. Completion: the completion. All: everything. Absent: Assistant for "
        "Messages, Completion for PromptCompletion, All for Text and for the objective "
        "ContinuedPretraining.",
    )
    chat_template: ChatTemplate | None = Field(
        default=None,
        description="Chat template for Messages; saved with the model. Absent: the tokenizer's.",
    )
    overlong: Literal["Auto", "Drop", "Truncate", "Split", "Fail"] = Field(
        default="Auto",
        description="What becomes of an example longer than training.sequenceLength. Drop: left "
        "out and counted; the job fails above 5 %. Truncate: its end is cut off. Split: cut into "
        "several (Text only). Fail: the job fails. Auto (the default): Split for Text, Drop for "
        "the others.",
    )
