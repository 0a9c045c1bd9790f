"""Checks of single fields of a row."""

import json
from typing import Any

from finetune_trainer.data.row_errors import bad_data, json_type


def valid_text(where: str, name: str, text: Any) -> str:
    """Return the text of a field; TrainerError (65) if it is not text that can be tokenized.

    JSON can escape one half of a surrogate pair, which no tokenizer accepts.
    """
    if not isinstance(text, str):
        raise bad_data(where, f"{name!r} is a {json_type(text)}", "it must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_data(
            where,
            f"the escape \\u{ord(text[error.start]):04x} is half of a surrogate pair",
            "write the complete pair, or remove it",
        ) from error
    return text


def parsed(where: str, name: str, value: Any) -> Any:
    """Return a list or object that may be given as JSON in a text, as it must be in CSV."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError) as error:
        problem = f"{name!r} is text that is not valid JSON ({error})"
        raise bad_data(where, problem, "fix or remove it") from error
