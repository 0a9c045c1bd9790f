"""Conversations: the messages of a row, with OpenAI's or ShareGPT's keys, for chat templates."""

from typing import Any

from finetune_trainer.data.example import REASONING, Example, Message
from finetune_trainer.data.fields import parsed, valid_text
from finetune_trainer.data.row_errors import bad_data, json_type

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
# Keys of a message that are passed to the chat template unchanged.
_PASSED = ("tool_call_id", "name", *REASONING)


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
