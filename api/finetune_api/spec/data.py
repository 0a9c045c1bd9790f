"""What is trained, and on what."""

from typing import Literal

from pydantic import Field

from finetune_api.spec.common import Spec, Uri


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
