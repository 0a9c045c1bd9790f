"""From a row to an example: Messages and ShareGPT, PromptCompletion and Alpaca, Text.

All rows of a source have one shape (`source_format`). A row that cannot be read, or that has a key
of another kind of training (`row_keys`), ends the job and names its place and the remedy. A row
that is only empty becomes an example, which the caller drops and counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from finetune_trainer.data.block import Row
from finetune_trainer.data.conversation import conversation, system_prompt, tools_of
from finetune_trainer.data.example import (
    Example,
    Message,
    bad_data,
    json_type,
    parsed,
    valid_text,
)
from finetune_trainer.data.row_keys import (
    ShapeName,
    check_placeholders,
    has_content,
    unused_in_row,
    used_by,
)

NAMES = {
    name: name
    for name in (
        *("messages", "role", "content", "tools", "prompt", "completion"),
        *("instruction", "input", "output", "text"),
    )
}
ALLOWED = (
    'Messages, {"messages": [{"role": "user", "content": "..."}, ...]}, or ShareGPT, '
    '{"conversations": [{"from": "human", "value": "..."}, ...]}; '
    'PromptCompletion, {"prompt": "...", "completion": "..."}, or Alpaca, '
    '{"instruction": "...", "input": "...", "output": "..."}; Text, {"text": "..."}; '
    "dataset.train[].columns gives other names"
)
# The prompts with which Alpaca was trained (Taori et al., 2023).
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n{}"
    "\n\n### Input:\n{}\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Shape:
    """The way in which all rows of one source are read."""

    name: ShapeName
    keys: dict[str, str]
    """Our name of a key -> the name that the rows use."""

    @property
    def title(self) -> str:
        """The name of the format, for the status."""
        if self.name == "messages":
            return "ShareGPT" if self.keys["role"] == "from" else "messages"
        titles = {"pair": "prompt/completion", "text": "text"}
        return titles.get(self.name, "Alpaca")

    def example(self, row: Row) -> Example:
        """Return the example of a row; TrainerError (65) if the row has another shape."""
        where, value = row
        fields = fields_of(where, value)
        unused = unused_in_row(where, fields, self._used, self.name)
        readers: dict[ShapeName, Callable[[str, Message, dict[str, str]], Example]] = {
            "messages": _messages,
            "pair": _pair,
            "alpaca": _alpaca,
            "alpaca chat": _alpaca_chat,
            "text": _text,
        }
        example = readers[self.name](where, fields, self.keys)
        check_placeholders(fields, example)
        return replace(example, unused=(*unused, *example.unused)) if unused else example

    @cached_property
    def _used(self) -> frozenset[str]:
        return used_by(self.name, self.keys)


def fields_of(where: str, value: Any) -> Message:
    """Return the fields of a row; TrainerError (65) if it is not an object."""
    if not isinstance(value, dict):
        remedy = f"every row must be an object: {ALLOWED}"
        raise bad_data(where, f"a JSON {json_type(value)}", remedy)
    return value


def _messages(where: str, row: Message, keys: dict[str, str]) -> Example:
    _require(where, row, keys["messages"])
    example = conversation(where, row, keys)
    _check_prompt(where, row, example)
    return example


def _check_prompt(where: str, row: Message, example: Example) -> None:
    """Check that a prompt beside messages is a copy of one of them; TrainerError (65)."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not has_content(prompt):
        return
    if not any(prompt.strip() in message["content"] for message in example.messages or []):
        problem = "'prompt' is not a part of the conversation beside it"
        raise bad_data(where, problem, "put it into a message, or remove it")


def _pair(where: str, row: Message, keys: dict[str, str]) -> Example:
    prompt, completion = (_field(where, row, keys[key]) for key in ("prompt", "completion"))
    return Example(where, None, _after_system(where, row, keys, prompt), completion)


def _alpaca(where: str, row: Message, keys: dict[str, str]) -> Example:
    task, given, answer = _alpaca_fields(where, row, keys)
    prompt = _ALPACA_INPUT.format(task, given) if given else _ALPACA.format(task)
    return Example(where, None, _after_system(where, row, keys, prompt), answer)


def _after_system(where: str, row: Message, keys: dict[str, str], prompt: str) -> str:
    system = system_prompt(where, row, keys)
    return f"{system}\n\n{prompt}" if system else prompt


def _alpaca_chat(where: str, row: Message, keys: dict[str, str]) -> Example:
    task, given, answer = _alpaca_fields(where, row, keys)
    asked = f"{task}\n\n{given}" if given else task
    system = system_prompt(where, row, keys)
    messages = [{"role": "system", "content": system}] if system else []
    for question, reply in [*_history(where, row.get("history")), (asked, answer)]:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": reply})
    return Example(where, messages, tools=tools_of(where, keys["tools"], row.get(keys["tools"])))


def _history(where: str, value: Any) -> list[tuple[str, str]]:
    """Return the earlier turns of an Alpaca row: (question, answer)."""
    pairs = parsed(where, "history", value) if has_content(value) else None
    if not has_content(pairs):
        return []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        problem = "'history' is not a list of pairs of texts"
        raise bad_data(where, problem, 'give [["question", "answer"], ...]')
    for text in (text for pair in pairs for text in pair):
        valid_text(where, "history", text)
    return [(question, answer) for question, answer in pairs]


def _alpaca_fields(where: str, row: Message, keys: dict[str, str]) -> tuple[str, str, str]:
    task, answer = (_field(where, row, keys[key]) for key in ("instruction", "output"))
    given = row.get(keys["input"])
    return task, valid_text(where, keys["input"], given) if given else "", answer


def _text(where: str, row: Message, keys: dict[str, str]) -> Example:
    return Example(where, text=_field(where, row, keys["text"]))


def _field(where: str, row: Message, name: str) -> str:
    _require(where, row, name)
    return valid_text(where, name, row[name])


def _require(where: str, row: Message, name: str) -> None:
    if name not in row:
        raise bad_data(where, f"no {name!r}, only {sorted(row)}", f"allowed: {ALLOWED}")
