"""From a row to an example: Messages and ShareGPT, PromptCompletion and Alpaca, Text.

The first row of a source decides its shape, a later row of another shape is an error. A row that
cannot be read ends the job and says where it is and what to do; a row that is merely useless
(empty) is the caller's to drop and count.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import xxhash

from finetune_api.spec import DataSource
from finetune_trainer.data.read import Row
from finetune_trainer.data.refuse import bad_data, kind

Format = Literal["Messages", "PromptCompletion", "Text"]
Message = dict[str, Any]
_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
_NAMES = {
    name: name
    for name in (
        *("messages", "role", "content", "tools", "prompt", "completion"),
        *("instruction", "input", "output", "text"),
    )
}
# Fields that change what an example means and that nothing here can follow.
_REFUSED = ("functions", "documents", "chat_template_kwargs", "function_call")
# Keys of a message that go to the chat template as they are.
REASONING = ("reasoning_content", "reasoning", "thinking")
_PASSED = ("tool_call_id", "name", *REASONING)
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


@dataclass(frozen=True)
class Example:
    """One row of a source. `where` names file and line for people.

    `messages` as chat templates take them; `untrained` are the indices of those that are left out
    of the loss.
    """

    where: str
    messages: list[Message] | None = None
    prompt: str = ""
    completion: str = ""
    text: str | None = None
    tools: list[Any] | None = None
    untrained: frozenset[int] = field(default_factory=frozenset)

    @property
    def format(self) -> Format:
        """Which of the three it is rendered as."""
        if self.messages is not None:
            return "Messages"
        return "PromptCompletion" if self.text is None else "Text"

    @property
    def is_empty(self) -> bool:
        """Nothing to learn from."""
        if self.messages is not None:
            return not any(m["content"].strip() or "tool_calls" in m for m in self.messages)
        return not (self.completion if self.text is None else self.text.strip())

    def digest(self) -> int:
        """xxh3-64 of what it says: equal for copies, wherever they stand."""
        if self.messages is None:
            parts = [self.prompt, self.completion] if self.text is None else [self.text]
        else:
            parts = [json.dumps(self.tools)] if self.tools else []
            for message in self.messages:
                parts += [message["role"], message["content"]]
                if len(message) > 2:
                    parts.append(json.dumps(message, sort_keys=True))
        state = xxhash.xxh3_64()
        for part in parts:
            encoded = part.encode()
            state.update(len(encoded).to_bytes(8, "little"))
            state.update(encoded)
        return state.intdigest()


@dataclass(frozen=True)
class Shape:
    """How the rows of one source are read."""

    read: Literal["messages", "pair", "alpaca", "alpaca chat", "text"]
    names: dict[str, str]

    def example(self, row: Row) -> Example:
        """TrainerError (65) when the row has another shape."""
        where, value = row
        fields = _fields(where, value)
        readers: dict[str, Callable[[str, Message, dict[str, str]], Example]] = {
            "messages": _messages,
            "pair": _pair,
            "alpaca": _alpaca,
            "alpaca chat": _alpaca_chat,
            "text": _text,
        }
        return readers[self.read](where, fields, self.names)


def shape_of(row: Row, source: DataSource, *, chat: bool) -> Shape:
    """The shape of a source whose first row this is. `chat`: there is a chat template.

    With a chat template an Alpaca row is an exchange, without one it has Alpaca's own prompt.
    """
    where, value = row
    fields = _fields(where, value)
    given = source.columns.model_dump(exclude_none=True) if source.columns else {}
    names = _NAMES | given
    if "messages" not in given and "messages" not in fields and "conversations" in fields:
        names["messages"] = "conversations"
    found: Literal["messages", "pair", "alpaca", "alpaca chat", "text"]
    if names["messages"] in fields:
        found = "messages"
        names |= _sharegpt(fields[names["messages"]], given)
    elif names["prompt"] in fields and names["completion"] in fields:
        found = "pair"
    elif names["instruction"] in fields and names["output"] in fields:
        as_chat = chat if source.format == "Auto" else source.format == "Messages"
        found = "alpaca chat" if as_chat else "alpaca"
    elif names["text"] in fields:
        found = "text"
    else:
        raise bad_data(where, f"an object with the keys {sorted(fields)}", f"allowed: {_ALLOWED}")
    formats = {"pair": "PromptCompletion", "alpaca": "PromptCompletion", "text": "Text"}
    is_format = formats.get(found, "Messages")
    if source.format not in ("Auto", is_format):
        problem = f"an object with the keys {sorted(fields)} is {is_format}"
        raise bad_data(where, problem, f"format is {source.format}; allowed: {_ALLOWED}")
    return Shape(found, names)


def _sharegpt(messages: Any, given: dict[str, str]) -> dict[str, str]:
    """ShareGPT's names of role and content, where the first message has them."""
    if isinstance(messages, str):
        return {}
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, dict) or "role" in first or "from" not in first:
        return {}
    return {"role": "from", "content": "value"} | given


def _fields(where: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise bad_data(where, f"a JSON {kind(value)}", f"every row must be an object: {_ALLOWED}")
    for name in _REFUSED:
        if value.get(name):
            raise bad_data(where, f"{name!r} is not supported", "remove the field, or the row")
    return value


def _messages(where: str, row: Message, names: dict[str, str]) -> Example:
    key = names["messages"]
    if key not in row:
        raise bad_data(where, f"no {key!r}, only {sorted(row)}", f"allowed: {_ALLOWED}")
    messages = _parsed(where, key, row[key])
    if not isinstance(messages, list):
        found = f"{key!r} is a {kind(messages)}"
        raise bad_data(where, found, "it must be a list of messages")
    read, untrained = [], set()
    if names["role"] == "from" and row.get("system"):  # ShareGPT's column
        read.append({"role": "system", "content": _whole(where, "system", row["system"])})
    for number, message in enumerate(messages, 1):
        at = f"{where}, message {number}"
        if not _is_trained(at, message):
            untrained.add(len(read))
        read.append(_message(at, message, names))
    tools = _tools(where, names["tools"], row.get(names["tools"]))
    return Example(where, read, tools=tools, untrained=frozenset(untrained))


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
        "content": "" if content is None and calls else _whole(at, "content", content),
    }
    if calls:
        found["tool_calls"] = _calls(at, calls)
    for name in _PASSED:
        if message.get(name):
            found[name] = _whole(at, name, message[name])
    return found


def _is_trained(at: str, message: Any) -> bool:
    """`train: false`, and OpenAI's `weight: 0`, leave a turn out of the loss."""
    if not isinstance(message, dict):
        return True
    trained = True
    for name, allowed in (("train", (True, False)), ("weight", (0, 1))):
        value = message.get(name)
        if value is None:
            continue
        if value not in allowed or isinstance(value, bool) != (name == "train"):
            words = "true or false" if name == "train" else "0 or 1"
            raise bad_data(at, f"{name!r} is {value!r}", f"allowed are {words}")
        trained = trained and bool(value)
    return trained


def _calls(at: str, calls: Any) -> list[Any]:
    """Tool calls with arguments as objects, as chat templates want them; OpenAI sends text."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise bad_data(at, "'tool_calls' is no list of objects", "give a list of calls")
    read = []
    for call in calls:
        inner = call.get("function", call)
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise bad_data(at, "a tool call without a name", 'give {"name": ..., "arguments": ...}')
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(at, "arguments", arguments or "{}")
        inner = inner | {"arguments": arguments}
        read.append(call | {"function": inner} if "function" in call else inner)
    return read


def _tools(where: str, name: str, value: Any) -> list[Any] | None:
    tools = _parsed(where, name, value) if value else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_data(where, f"{name!r} is no list of objects", "give a list of JSON schemas")
    return tools


def _parsed(where: str, name: str, value: Any) -> Any:
    """Lists and objects may be JSON in a text: csv has no other way, and others do it too."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError) as error:
        raise bad_data(where, f"{name!r} is text and no JSON ({error})", "mend it") from error


def _joined_parts(at: str, parts: list[Any]) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            found = part.get("type") if isinstance(part, dict) else kind(part)
            raise bad_data(at, f"a content part of type {found!r}", "only parts of type text work")
        text = part.get("text")
        if not isinstance(text, str):
            raise bad_data(at, f"a text part whose text is a {kind(text)}", "it must be text")
        texts.append(text)
    return "".join(texts)


def _pair(where: str, row: Message, names: dict[str, str]) -> Example:
    prompt, completion = (_field(where, row, names[key]) for key in ("prompt", "completion"))
    return Example(where, None, prompt, completion)


def _alpaca(where: str, row: Message, names: dict[str, str]) -> Example:
    task, given, answer = _alpaca_fields(where, row, names)
    prompt = _ALPACA_INPUT.format(task, given) if given else _ALPACA.format(task)
    return Example(where, None, prompt, answer)


def _alpaca_chat(where: str, row: Message, names: dict[str, str]) -> Example:
    task, given, answer = _alpaca_fields(where, row, names)
    asked = f"{task}\n\n{given}" if given else task
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return Example(where, messages if answer else [])


def _alpaca_fields(where: str, row: Message, names: dict[str, str]) -> tuple[str, str, str]:
    task, answer = (_field(where, row, names[key]) for key in ("instruction", "output"))
    given = row.get(names["input"])
    return task, _whole(where, names["input"], given) if given else "", answer


def _text(where: str, row: Message, names: dict[str, str]) -> Example:
    return Example(where, text=_field(where, row, names["text"]))


def _field(where: str, row: Message, name: str) -> str:
    if name not in row:
        raise bad_data(where, f"no {name!r}, only {sorted(row)}", f"allowed: {_ALLOWED}")
    return _whole(where, name, row[name])


def _whole(where: str, name: str, text: Any) -> str:
    """Text; JSON can escape one half of a surrogate pair, which no tokenizer takes."""
    if not isinstance(text, str):
        raise bad_data(where, f"{name!r} is a {kind(text)}", "it must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_data(
            where,
            f"the escape \\u{ord(text[error.start]):04x} is half a character",
            "write the whole pair, or remove it",
        ) from error
    return text
