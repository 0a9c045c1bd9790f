"""From a row to an example: Messages and ShareGPT, PromptCompletion and Alpaca, Text.

The first row of a source decides its shape; a later row of another shape is an error. A row that
cannot be read ends the job and names its place and the remedy. A row that is only empty becomes an
example, which the caller drops and counts. Conversations have OpenAI's or ShareGPT's keys, and
become messages in the form that chat templates take.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.spec import DataSource
from finetune_trainer.data.example import (
    REASONING,
    Example,
    Message,
    bad_data,
    json_type,
    parsed,
    valid_text,
)
from finetune_trainer.data.read import Row

_NAMES = {
    name: name
    for name in (
        *("messages", "role", "content", "tools", "prompt", "completion"),
        *("instruction", "input", "output", "text"),
    )
}
# Fields that change the meaning of an example in a way that is not supported here.
_REFUSED = ("functions", "documents", "chat_template_kwargs", "function_call")
_ALLOWED = (
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
ShapeName = Literal["messages", "pair", "alpaca", "alpaca chat", "text"]
_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
# Keys of a message that are passed to the chat template unchanged.
_PASSED = ("tool_call_id", "name", *REASONING)


@dataclass(frozen=True)
class Shape:
    """The way in which all rows of one source are read."""

    name: ShapeName
    keys: dict[str, str]
    """Our name of a key -> the name that the rows use."""

    def example(self, row: Row) -> Example:
        """Return the example of a row; TrainerError (65) if the row has another shape."""
        where, value = row
        fields = _fields(where, value)
        readers: dict[ShapeName, Callable[[str, Message, dict[str, str]], Example]] = {
            "messages": _messages,
            "pair": _pair,
            "alpaca": _alpaca,
            "alpaca chat": _alpaca_chat,
            "text": _text,
        }
        return readers[self.name](where, fields, self.keys)


def shape_of(row: Row, source: DataSource, *, chat: bool) -> Shape:
    """Return the shape of a source, given its first row and whether there is a chat template.

    With a chat template an Alpaca row becomes a conversation, without one it gets Alpaca's prompt.
    Raises TrainerError (65) for a row of no known shape, or of another one than `source.format`.
    """
    where, value = row
    fields = _fields(where, value)
    given = source.columns.model_dump(exclude_none=True) if source.columns else {}
    keys = _NAMES | given
    if "messages" not in given and "messages" not in fields and "conversations" in fields:
        keys["messages"] = "conversations"
    found: ShapeName
    if keys["messages"] in fields:
        found = "messages"
        keys |= sharegpt_names(fields[keys["messages"]], given)
    elif keys["prompt"] in fields and keys["completion"] in fields:
        found = "pair"
    elif keys["instruction"] in fields and keys["output"] in fields:
        as_chat = chat if source.format == "Auto" else source.format == "Messages"
        found = "alpaca chat" if as_chat else "alpaca"
    elif keys["text"] in fields:
        found = "text"
    else:
        raise bad_data(where, f"an object with the keys {sorted(fields)}", f"allowed: {_ALLOWED}")
    formats = {"pair": "PromptCompletion", "alpaca": "PromptCompletion", "text": "Text"}
    is_format = formats.get(found, "Messages")
    if source.format not in ("Auto", is_format):
        problem = f"an object with the keys {sorted(fields)} is {is_format}"
        raise bad_data(where, problem, f"format is {source.format}; allowed: {_ALLOWED}")
    return Shape(found, keys)


def _fields(where: str, value: Any) -> Message:
    if not isinstance(value, dict):
        remedy = f"every row must be an object: {_ALLOWED}"
        raise bad_data(where, f"a JSON {json_type(value)}", remedy)
    for name in _REFUSED:
        if value.get(name):
            raise bad_data(where, f"{name!r} is not supported", "remove the field, or the row")
    return value


def _messages(where: str, row: Message, keys: dict[str, str]) -> Example:
    _require(where, row, keys["messages"])
    return conversation(where, row, keys)


def _pair(where: str, row: Message, keys: dict[str, str]) -> Example:
    prompt, completion = (_field(where, row, keys[key]) for key in ("prompt", "completion"))
    return Example(where, None, prompt, completion)


def _alpaca(where: str, row: Message, keys: dict[str, str]) -> Example:
    task, given, answer = _alpaca_fields(where, row, keys)
    prompt = _ALPACA_INPUT.format(task, given) if given else _ALPACA.format(task)
    return Example(where, None, prompt, answer)


def _alpaca_chat(where: str, row: Message, keys: dict[str, str]) -> Example:
    task, given, answer = _alpaca_fields(where, row, keys)
    asked = f"{task}\n\n{given}" if given else task
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return Example(where, messages if answer else [])


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
        raise bad_data(where, f"no {name!r}, only {sorted(row)}", f"allowed: {_ALLOWED}")


def conversation(where: str, row: Message, names: dict[str, str]) -> Example:
    """Return the conversation of a row that has the key `names["messages"]`.

    `names` maps our name of a key to the row's. Raises TrainerError (65) with message and problem.
    """
    key = names["messages"]
    messages = parsed(where, key, row[key])
    if not isinstance(messages, list):
        found = f"{key!r} is a {json_type(messages)}"
        raise bad_data(where, found, "it must be a list of messages")
    read, untrained = [], set()
    if names["role"] == "from" and row.get("system"):  # a column of ShareGPT
        read.append({"role": "system", "content": valid_text(where, "system", row["system"])})
    for number, message in enumerate(messages, 1):
        at = f"{where}, message {number}"
        if not _is_trained(at, message):
            untrained.add(len(read))
        read.append(_message(at, message, names))
    tools = _tools(where, names["tools"], row.get(names["tools"]))
    return Example(where, read, tools=tools, untrained=frozenset(untrained))


def sharegpt_names(messages: Any, given: dict[str, str]) -> dict[str, str]:
    """Return ShareGPT's keys of role and content if the first message has them, else nothing."""
    if isinstance(messages, str):
        return {}
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, dict) or "role" in first or "from" not in first:
        return {}
    return {"role": "from", "content": "value"} | given


def _message(at: str, message: Any, names: dict[str, str]) -> Message:
    role_key, content_key = names["role"], names["content"]
    if not isinstance(message, dict) or role_key not in message:
        raise bad_data(at, "not a message", f"it needs {role_key!r} and {content_key!r}")
    calls = message.get("tool_calls")
    content = message.get(content_key)
    if content_key not in message and not calls:
        raise bad_data(at, "not a message", f"it needs {role_key!r} and {content_key!r}")
    role = message[role_key]
    if role_key == "from" and isinstance(role, str):
        role = _SHAREGPT_ROLES.get(role, role)
    if role not in _ROLES:
        raise bad_data(at, f"role {role!r}", f"allowed are {', '.join(_ROLES)}")
    if message.get("function_call"):
        raise bad_data(at, "'function_call' is not supported", "use 'tool_calls'")
    if isinstance(content, list):
        content = _joined_parts(at, content)
    found: Message = {
        "role": role,
        "content": "" if content is None and calls else valid_text(at, "content", content),
    }
    if calls:
        found["tool_calls"] = _tool_calls(at, calls)
    for name in _PASSED:
        if message.get(name):
            found[name] = valid_text(at, name, message[name])
    return found


def _is_trained(at: str, message: Any) -> bool:
    """Return False for `train: false` and for OpenAI's `weight: 0`."""
    if not isinstance(message, dict):
        return True
    trained = True
    for name, allowed in (("train", (True, False)), ("weight", (0, 1))):
        value = message.get(name)
        if value is None:
            continue
        if value not in allowed or isinstance(value, bool) != (name == "train"):
            values = "true or false" if name == "train" else "0 or 1"
            raise bad_data(at, f"{name!r} is {value!r}", f"allowed are {values}")
        trained = trained and bool(value)
    return trained


def _tool_calls(at: str, calls: Any) -> list[Any]:
    """Return tool calls whose arguments are objects, as chat templates need; OpenAI sends text."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise bad_data(at, "'tool_calls' is not a list of objects", "give a list of calls")
    read = []
    for call in calls:
        inner = call.get("function", call)
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise bad_data(at, "a tool call without a name", 'give {"name": ..., "arguments": ...}')
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            arguments = parsed(at, "arguments", arguments or "{}")
        inner = inner | {"arguments": arguments}
        read.append(call | {"function": inner} if "function" in call else inner)
    return read


def _tools(where: str, name: str, value: Any) -> list[Any] | None:
    tools = parsed(where, name, value) if value else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_data(where, f"{name!r} is not a list of objects", "give a list of JSON schemas")
    return tools


def _joined_parts(at: str, parts: list[Any]) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            found = part.get("type") if isinstance(part, dict) else json_type(part)
            raise bad_data(at, f"a content part of type {found!r}", "only parts of type text work")
        text = part.get("text")
        if not isinstance(text, str):
            problem = f"a text part whose text is a {json_type(text)}"
            raise bad_data(at, problem, "it must be text")
        texts.append(text)
    return "".join(texts)
