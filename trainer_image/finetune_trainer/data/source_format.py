"""Decides the format of a source over many of its rows: the first one may be empty, or the odd one.

The most frequent shape is taken. Rows of another shape are refused when they are read.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from finetune_api.spec import DataSource
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.block import Row
from finetune_trainer.data.example import Message, bad_data, parsed
from finetune_trainer.data.row_keys import KNOWN
from finetune_trainer.data.shapes import ALLOWED, NAMES, Shape, fields_of

MOST_ROWS = 1000
"""Rows of a source that are looked at."""
_SHAREGPT = {"role": "from", "content": "value"}
# Columns that need not be in every row, and keys of messages.
_OPTIONAL = ("tools", "input", "role", "content")
_FORMATS = {"pair": "PromptCompletion", "alpaca": "PromptCompletion", "text": "Text"}


def known_columns(source: DataSource) -> frozenset[str]:
    """Return the names of all columns that can change what is learned from a source."""
    return frozenset({*KNOWN, "conversations", *_given(source).values()})


def shape_of(rows: Sequence[Row], source: DataSource, *, chat: bool) -> Shape:
    """Return the shape of a source, given its first rows and whether there is a chat template.

    With a chat template an Alpaca row becomes a conversation, without one it gets Alpaca's prompt.
    Raises TrainerError (65) if no row has a known shape, if the shape is another one than
    `source.format`, or if no row has a column that `source.columns` names.
    """
    every = [(where, value) for where, value in rows if isinstance(value, dict)]
    if not every:
        fields_of(*rows[0])
    _check_columns([fields for _, fields in every], source)
    found = [(row, shape) for row in every if (shape := _shape(row[1], source, chat))]
    if not found:
        where, fields = every[0]
        raise bad_data(where, f"an object with the keys {sorted(fields)}", f"allowed: {ALLOWED}")
    votes = Counter((shape.name, shape.keys["messages"]) for _, shape in found)
    name, key = votes.most_common(1)[0][0]
    same = [(row, s) for row, s in found if (s.name, s.keys["messages"]) == (name, key)]
    (where, fields), shape = same[0]
    is_format = _FORMATS.get(name, "Messages")
    if source.format not in ("Auto", is_format):
        problem = f"an object with the keys {sorted(fields)} is {is_format}"
        raise bad_data(where, problem, f"format is {source.format}; allowed: {ALLOWED}")
    if name != "messages":
        return shape
    names = Counter(_is_sharegpt(row[1][key]) for row, _ in same)
    shared = names[True] > names[False]
    return Shape(name, NAMES | (_SHAREGPT if shared else {}) | _given(source) | {"messages": key})


def _given(source: DataSource) -> dict[str, str]:
    return source.columns.model_dump(exclude_none=True) if source.columns else {}


def _check_columns(rows: list[Message], source: DataSource) -> None:
    there = {name for fields in rows for name in fields}
    for ours, name in _given(source).items():
        if ours not in _OPTIONAL and name not in there:
            columns = ", ".join(map(repr, sorted(there)[:20])) or "none"
            raise bad_data(
                source.source,
                f"columns names {name!r} for {ours}, but none of the first {len(rows)} rows has it",
                f"they have {columns}",
            )


def _shape(fields: Message, source: DataSource, chat: bool) -> Shape | None:
    """Return the shape of one row, or None if it has none of the known ones."""
    given = _given(source)
    keys = NAMES | given
    if "messages" not in given and "messages" not in fields and "conversations" in fields:
        keys["messages"] = "conversations"
    if keys["messages"] in fields:
        return Shape("messages", keys)
    if keys["prompt"] in fields and keys["completion"] in fields:
        return Shape("pair", keys)
    if keys["instruction"] in fields and keys["output"] in fields:
        as_chat = chat if source.format == "Auto" else source.format == "Messages"
        return Shape("alpaca chat" if as_chat else "alpaca", keys)
    return Shape("text", keys) if keys["text"] in fields else None


def _is_sharegpt(messages: Any) -> bool | None:
    """Return whether a list of messages has ShareGPT's keys; None if it has no message."""
    try:
        messages = parsed("", "", messages)
    except TrainerError:
        return None  # refused when it is read
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, dict):
        return None
    return "role" not in first and "from" in first
