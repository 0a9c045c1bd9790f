"""The parts of the spec that name the model and the data."""

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
from finetune_api.spec.use import Rows

_WHOLE_DATA_SET = "'^hf://[^/]+/[^/]+/*$'"
_SECRET = (
    "credentialsSecretRef refers to the Secret whose keys become environment variables of the "
    "prepare pod: HF_TOKEN, AWS_ACCESS_KEY_ID, ... The operator never reads it. It is allowed only "
    "with hf://, s3:// and gs:// sources."
)

Column = Annotated[str, Field(min_length=1, max_length=128)]
Format = Literal["Auto", "Messages", "PromptCompletion", "Text"]
LossOn = Literal["Assistant", "LastAssistant", "Completion", "All"]
Overlong = Literal["Auto", "Drop", "Truncate", "Split", "Fail"]
SpecialTokensRule = Literal["Plain", "Refuse"]


class Model(Spec):
    """The model that training starts from."""

    model_config = ConfigDict(json_schema_extra=rules(REVISION_RULE, CREDENTIALS_RULE))

    source: SourceUri = Field(
        description="source is the address of a Hugging Face model folder (config.json, "
        "safetensors weights, tokenizer), at most 512 characters: pvc://CLAIM/PATH, "
        "hf://ORG/NAME[/PATH], s3://BUCKET/KEY or gs://BUCKET/KEY. A model that is not on a claim "
        "is downloaded into the cache once."
    )
    revision: Revision | None = Field(
        default=None,
        description="revision is the branch, tag or commit of an hf:// model, at most 128 "
        "characters. Default: main. status.resolved.modelRevision shows the commit that was "
        "found.",
    )
    credentials_secret_ref: SecretRef | None = Field(default=None, description=_SECRET)


class Columns(Spec):
    """Names of columns and of message keys where they differ from the defaults."""

    messages: Column | None = Field(
        default=None,
        description="messages is the name of the column with the list of messages, at most 128 "
        "characters. Default: messages.",
    )
    role: Column | None = Field(
        default=None,
        description="role is the key of the author of a message, at most 128 characters. Default: "
        "role.",
    )
    content: Column | None = Field(
        default=None,
        description="content is the key of the text of a message, at most 128 characters. "
        "Default: content.",
    )
    tools: Column | None = Field(
        default=None,
        description="tools is the name of the column with the tools that the assistant may call, "
        "at most 128 characters. Default: tools.",
    )
    prompt: Column | None = Field(
        default=None,
        description="prompt is the name of the column with the text that is not trained on, at "
        "most 128 characters. Default: prompt.",
    )
    completion: Column | None = Field(
        default=None,
        description="completion is the name of the column with the text that is trained on, at "
        "most 128 characters. Default: completion.",
    )
    instruction: Column | None = Field(
        default=None,
        description="instruction is the name of the column with the instruction in Alpaca's "
        "format, at most 128 characters. Default: instruction.",
    )
    input: Column | None = Field(
        default=None,
        description="input is the name of the column with the input in Alpaca's format, at most "
        "128 characters. Default: input.",
    )
    output: Column | None = Field(
        default=None,
        description="output is the name of the column with the answer in Alpaca's format, at most "
        "128 characters. Default: output.",
    )
    text: Column | None = Field(
        default=None,
        description="text is the name of the column with the text of a document, at most 128 "
        "characters. Default: text.",
    )


class DataSource(Spec):
    """Files that contain examples."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            REVISION_RULE,
            CREDENTIALS_RULE,
            Rule(
                f"!has(self.split) || self.source.matches({_WHOLE_DATA_SET}) && "
                "self.split.matches('^[A-Za-z0-9_]+([-.][A-Za-z0-9_]+)*$')",
                "must be the name of one complete split, for example train, and is allowed only "
                "with the source hf://ORG/NAME without a path; otherwise remove it",
                ".split",
            ),
        )
    )

    source: Annotated[SourceUri, Rows.RESOLVED] = Field(
        description="source is the address of the files, at most 512 characters: "
        "pvc://CLAIM/PATH, hf://ORG/NAME[/PATH], s3://BUCKET/KEY or gs://BUCKET/KEY. The path "
        "names a file, a folder (every data file below it) or a glob pattern (*, **, [ab]). Files "
        "are .jsonl (one example per line), .json (a list, or one per line) or .csv, each "
        "optionally with .gz, or .parquet or .arrow, in UTF-8; all files of a source have the same "
        "type. hf://ORG/NAME alone is a split of that data set."
    )
    split: Annotated[str | None, Rows.RESOLVED] = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="split is the name of the split of the data set hf://ORG/NAME, at most 128 "
        "characters. Default: train, except in dataset.validation, where such a source must "
        "set it.",
    )
    revision: Annotated[Revision | None, Rows.RESOLVED] = Field(
        default=None,
        description="revision is the branch, tag or commit of an hf:// data set, at most 128 "
        "characters. Default: main.",
    )
    credentials_secret_ref: Annotated[SecretRef | None, Rows.UNRELATED] = Field(
        default=None, description=_SECRET
    )
    format: Annotated[Format, Rows.RESOLVED] = Field(
        default="Auto",
        description="format is the format of the examples. Messages is {messages: [{role, "
        "content}]}, or ShareGPT's {conversations: [{from, value}]}. PromptCompletion is {prompt, "
        "completion}, or Alpaca's {instruction, input, output}. Text is {text}. Auto takes the "
        "format of most of the first 1000 examples; an example in another format is an error. "
        "Default: Auto.",
    )
    columns: Annotated[Columns | None, Rows.RESOLVED] = Field(
        default=None,
        description="columns maps the names of columns and of message keys where they differ from "
        "the defaults.",
    )


class TrainSource(DataSource):
    """Files that contain examples to train on."""

    weight: Annotated[float | None, Rows.UNRELATED] = Field(
        default=None,
        gt=0,
        le=1000,
        description="weight is the share of the packed rows that come from this source, relative "
        "to the weights of the other sources; greater than 0, at most 1000. Either all sources "
        "have a weight or none has. Default: every row of every source is used once per epoch.",
    )


class ChatTemplate(Spec):
    """A Jinja chat template that replaces the tokenizer's."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("has(self.inline) != has(self.path)", "set exactly one of inline and path")
        )
    )

    inline: str | None = Field(
        default=None,
        min_length=1,
        max_length=32768,
        description="inline is the template itself, at most 32768 characters.",
    )
    path: Uri | None = Field(
        default=None,
        description="path is the address of a UTF-8 file with the template, as pvc://CLAIM/PATH "
        "of at most 512 characters.",
    )


class Dataset(Spec):
    """The data to train on and to validate with."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.validation) || self.validation.all(v, has(v.split) || "
                f"!v.source.matches({_WHOLE_DATA_SET}))",
                "set the split of each hf://ORG/NAME in validation, for example validation or "
                "test: the default, train, is the split that is trained on",
                ".validation",
            ),
            Rule(
                "!(has(self.validation) && has(self.validationFraction))",
                "set at most one of validation and validationFraction",
                ".validationFraction",
            ),
        )
    )

    train: Annotated[list[TrainSource], Rows.RESOLVED] = Field(
        min_length=1,
        max_length=16,
        description="train lists 1 to 16 sources of training examples. Sources without weights "
        "contribute in proportion to their size.",
        json_schema_extra=rules(
            Rule(
                "self.all(s, has(s.weight)) || !self.exists(s, has(s.weight))",
                "set the weight of every source, or of none",
            )
        ),
    )
    validation: Annotated[list[DataSource] | None, Rows.RESOLVED] = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="validation lists 1 to 16 sources of held-out examples. The loss on them is "
        "measured before the first step, after the last step and with every checkpoint. Default: "
        "no validation loss, unless validationFraction is set.",
    )
    validation_fraction: Annotated[float | None, Rows.VALUE] = Field(
        default=None,
        gt=0,
        le=0.5,
        description="validationFraction is the share of the training examples that is held out "
        "for validation instead of trained on; greater than 0, at most 0.5. A hash of each example "
        "decides, so all copies of an example are on the same side. Default: no example is held "
        "out.",
    )
    loss_on: Annotated[LossOn | None, Rows.RESOLVED] = Field(
        default=None,
        description="lossOn selects the tokens that are trained on. Assistant selects every "
        "assistant turn, LastAssistant the last assistant turn, Completion the completion, and All "
        "every token. Default: Assistant for Messages, Completion for PromptCompletion, All for "
        "Text and for the objective ContinuedPretraining.",
    )
    chat_template: Annotated[ChatTemplate | None, Rows.RESOLVED] = Field(
        default=None,
        description="chatTemplate is the chat template for the format Messages; it is saved with "
        "the model. Default: the template of the tokenizer.",
    )
    overlong: Annotated[Overlong, Rows.VALUE] = Field(
        default="Auto",
        description="overlong selects what happens to an example that is longer than "
        "training.sequenceLength. Drop leaves it out and counts it; the job fails if more than 5 % "
        "of the examples are dropped. Truncate cuts off its end. Split divides it into several "
        "documents (Text only). Fail fails the job. Auto splits Text and drops the other formats. "
        "Default: Auto.",
    )
    special_tokens: Annotated[SpecialTokensRule | None, Rows.RESOLVED] = Field(
        default=None,
        description="specialTokens selects what happens to special tokens of the tokenizer, such "
        "as </s> or <|im_end|>, in the text of an example. Plain trains on their plain characters, "
        "so that no text can end an answer or begin a message. Refuse leaves the example out and "
        "counts it as invalid. Default: Plain.",
    )
