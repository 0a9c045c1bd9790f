"""The keys of rows and messages that change what is learned, and what is done with each.

A key is used, or it is refused by name if it has content, or it is harmless and only listed. The
tables are also the source of the one in docs/use/data.md.
"""

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.progress import MAX_IGNORED
from finetune_trainer.data.example import REASONING, Example, bad_data

ShapeName = Literal["messages", "pair", "alpaca", "alpaca chat", "text"]
MAX_LISTED, MAX_NAME = 20, 63
_EVERY: tuple[ShapeName, ...] = ("messages", "pair", "alpaca", "alpaca chat", "text")
_ANSWERS, _PLAIN, _CHATS = _EVERY[:-1], ("pair", "alpaca"), ("messages", "alpaca chat")

SYSTEM = ("system", "system_prompt")
FLAGS = {"train": True, "training": True, "loss": True, "weight": True, "masked": False}
"""Keys of a message that say whether it is trained on -> the value that says so."""
MEDIA = ("images", "image", "videos", "video", "audios", "audio", "objects")
_PREFERENCES = (
    *("chosen", "rejected", "rejected_response", "rejected_messages"),
    *("preferred_output", "non_preferred_output"),
)
# Texts that stand for a part of a media column in the text.
_PLACEHOLDERS = ("<image>", "<video>", "<audio>")
_NO_CONTENT = ("", "[]", "{}", "null", "none", "nan")


def has_content(value: Any) -> bool:
    """Return whether a value holds anything; lists and objects may be JSON in a text."""
    if isinstance(value, str):
        return value.strip().lower() not in _NO_CONTENT
    if isinstance(value, Mapping):
        return any(map(has_content, value.values()))
    if isinstance(value, list):
        return any(map(has_content, value))
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and value is not False


def _is_set(value: Any) -> bool:
    return value is False or has_content(value)


def _is_boolean(value: Any) -> bool:
    text = value.strip().lower() if isinstance(value, str) else ""
    return isinstance(value, bool) or text in ("true", "false")


def _is_off(value: Any) -> bool:
    return _is_boolean(value) and str(value).strip().lower() == "false"


def _is_on(value: Any) -> bool:
    return _is_boolean(value) and not _is_off(value)


def _is_prose(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) > 1  # not "on", "off" or "high"


def _is_other_weight(value: Any) -> bool:
    try:
        return value is not None and float(value) != 1 and not math.isnan(float(value))
    except (TypeError, ValueError):
        return False  # a text such as "2 kg" does not weight an example


@dataclass(frozen=True)
class Refused:
    """Keys that end the job if their value `applies`."""

    names: tuple[str, ...]
    what: str
    """What the keys hold, for the documentation."""
    remedy: str
    shapes: tuple[ShapeName, ...] = _EVERY
    applies: Callable[[Any], bool] = has_content


_REMOVE = "remove the field, or the row"
_TEXT_ONLY = "models are trained on text only: remove the column, or the row"
_PREFERENCE = (
    "this is data for preference training: keep the answers to learn, and name their column in "
    "dataset.train[].columns, or remove the field"
)
_WHOLE_ROW = "rows are trained on as a whole: remove the row or the field"
ROWS = (
    Refused(MEDIA, "images, video, sound", _TEXT_ONLY),
    Refused(_PREFERENCES, "answers that compete", _PREFERENCE, applies=_is_set),
    Refused(
        ("kto_tag",),
        "whether an answer is good",
        "keep only the rows with good answers, without the field",
        applies=_is_set,
    ),
    Refused(
        ("label",),
        "whether an answer is good, if true or false",
        "keep only the rows with good answers, without the field",
        _ANSWERS,
        _is_boolean,
    ),
    Refused(("train", "training", "loss"), "false for a row", _WHOLE_ROW, _ANSWERS, _is_off),
    Refused(("masked",), "true for a row", _WHOLE_ROW, _ANSWERS, _is_on),
    Refused(("weight",), "a number other than 1 for a row", _WHOLE_ROW, _ANSWERS, _is_other_weight),
    Refused(
        ("functions", "function_call"),
        "OpenAI's first form of tools",
        "use 'tools' and 'tool_calls', or remove the field, or the row",
    ),
    Refused(("documents", "chat_template_kwargs"), "more input of the chat template", _REMOVE),
    Refused(
        REASONING,
        "reasoning, if longer than a word",
        "put it into the answer or into its message, or remove the field",
        _ANSWERS,
        _is_prose,
    ),
    Refused(
        ("history",),
        "earlier turns",
        "put its turns into the messages, or remove it",
        ("messages",),
    ),
    Refused(
        ("history", "tools"),
        "what only a conversation has",
        "it needs a chat template: set dataset.chatTemplate and the source's format Messages, or "
        "remove it",
        ("alpaca",),
    ),
    Refused(
        ("history", "tools"),
        "what only a conversation has",
        "write the row as messages, or remove it",
        ("pair",),
    ),
    Refused(
        ("input", "instruction"),
        "a part of the prompt",
        "join it to the prompt, or remove it",
        ("pair",),
    ),
    Refused(
        ("context",),
        "the input of an instruction",
        "set columns: {input: context}, or remove it",
        ("alpaca", "alpaca chat"),
    ),
)
MESSAGES = (
    Refused(MEDIA, "images, video, sound", _TEXT_ONLY),
    Refused(("function_call",), "OpenAI's first form of tools", "use 'tool_calls'"),
    Refused(("refusal",), "an answer that refuses", "put its text into the content, or remove it"),
    Refused(
        ("mask", "loss_mask", "train_detail", "training_detail"),
        "a mask of parts of a message",
        "use 'train': true or false for the whole message",
        applies=_is_set,
    ),
    Refused(("tools", "functions"), "tools", "put them into the row's 'tools'"),
)
_USED_BY_SHAPE: dict[ShapeName, tuple[str, ...]] = {
    "messages": (*SYSTEM, "messages", "tools"),
    "pair": (*SYSTEM, "prompt", "completion"),
    "alpaca": (*SYSTEM, "instruction", "input", "output"),
    "alpaca chat": (*SYSTEM, "instruction", "input", "output", "history", "tools"),
    "text": ("text",),
}
# Keys of a message that are passed to the chat template unchanged.
PASSED = ("tool_call_id", "name", *REASONING)
KNOWN = frozenset(name for names in _USED_BY_SHAPE.values() for name in names) | frozenset(
    name for rule in ROWS for name in rule.names
)
"""The keys of a row that have a meaning; columns of other names are not read."""
_ROW_RULES: dict[ShapeName, dict[str, Refused]] = {
    shape: {name: rule for rule in ROWS if shape in rule.shapes for name in rule.names}
    for shape in _EVERY
}
_MESSAGE_RULES = {name: rule for rule in MESSAGES for name in rule.names}


def used_by(shape: ShapeName, names: dict[str, str]) -> frozenset[str]:
    """Return the keys of a row that a shape reads; `names` maps our names to the row's."""
    return frozenset(names.get(name, name) for name in _USED_BY_SHAPE[shape])


def used_in_messages(names: dict[str, str]) -> frozenset[str]:
    """Return the keys of a message that are read."""
    return frozenset({names["role"], names["content"], "tool_calls", *PASSED, *FLAGS})


def unused_in_row(
    where: str, row: dict[str, Any], used: frozenset[str], shape: ShapeName
) -> list[str]:
    """Return the harmless keys of a row that are not read; TrainerError (65) for other ones."""
    unused = row.keys() - used
    if not unused:
        return []
    rules = _ROW_RULES[shape]
    if not used.isdisjoint(_PREFERENCES):  # `columns` names the answers to learn
        rules = {name: rule for name, rule in rules.items() if name not in _PREFERENCES}
    return _harmless(where, row, unused, rules)


def unused_in_message(at: str, message: dict[str, Any], used: frozenset[str]) -> list[str]:
    """Return the harmless keys of a message that are not read; TrainerError (65) for others."""
    unused = message.keys() - used
    if not unused:
        return []
    return _harmless(at, message, unused, _MESSAGE_RULES)


def _harmless(
    where: str, fields: dict[str, Any], unused: Set[str], rules: dict[str, Refused]
) -> list[str]:
    """Return the unused keys, in the order of the fields, without empty ones that have a rule."""
    harmless = []
    for name, value in fields.items():
        if name not in unused:
            continue
        rule = rules.get(name)
        if rule and rule.applies(value):
            raise bad_data(where, f"{name!r} is not supported", rule.remedy)
        if rule is None or has_content(value):
            harmless.append(name)
    return harmless


def check_placeholders(row: dict[str, Any], example: Example) -> None:
    """Check that no text refers to media that the row has a column for; TrainerError (65)."""
    columns = [name for name in MEDIA if name in row]
    if not columns:
        return
    text = "\n".join(example.texts())
    for word in _PLACEHOLDERS:
        if word in text:
            problem = f"{word!r} stands for a part of {columns[0]!r}, which is empty"
            raise bad_data(example.where, problem, "remove it from the text, or remove the row")


def is_trained(at: str, message: Any) -> bool:
    """Return whether the flags of a message let it be trained on."""
    trained = True
    for name, on in FLAGS.items():
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise bad_data(at, f"{name!r} is {value!r}", "allowed are true, false, 1 and 0")
        trained = trained and bool(value) == on
    return trained


def listed(names: list[str]) -> list[str]:
    """Return the names as `status.data.ignoredColumns` has them.

    At most 20 entries of 63 characters, and together MAX_IGNORED; the last one counts what is left.
    """
    short = [name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in names]
    shown = len(short)
    while shown and not _fit(entries := _first(short, shown)):
        shown -= 1
    return entries if shown else []


def _first(names: list[str], count: int) -> list[str]:
    rest = len(names) - count
    return [*names[:count], f"... and {rest} more"] if rest else names


def _fit(entries: list[str]) -> bool:
    return len(entries) <= MAX_LISTED and sum(map(len, entries)) <= MAX_IGNORED
