"""A conversation with OpenAI's or ShareGPT's keys, in the form that chat templates take."""

from typing import Any

from finetune_trainer.data.example import (
    Example,
    Message,
    bad_data,
    check_json,
    json_type,
    parsed,
    valid_text,
)
from finetune_trainer.data.row_keys import (
    PASSED,
    SYSTEM,
    has_content,
    is_trained,
    unused_in_message,
    used_in_messages,
)

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


def conversation(where: str, row: Message, names: dict[str, str]) -> Example:
    """Return the conversation of a row that has the key `names["messages"]`.

    `names` maps our name of a key to the row's. Raises TrainerError (65) with message and problem.
    """
    key = names["messages"]
    messages = parsed(where, key, row[key])
    if not isinstance(messages, list):
        found = f"{key!r} is a {json_type(messages)}"
        raise bad_data(where, found, "it must be a list of messages")
    used = used_in_messages(names)
    read: list[Message] = []
    unused: dict[str, None] = {}
    untrained = set()
    for number, message in enumerate(messages, 1):
        at = f"{where}, message {number}"
        read.append(_message(at, message, names))
        unused.update(dict.fromkeys(unused_in_message(at, message, used)))
        if not is_trained(at, message):
            untrained.add(number - 1)
    system = system_prompt(where, row, names)
    if system and _is_new(where, system, read, key):
        read.insert(0, {"role": "system", "content": system})
        untrained = {number + 1 for number in untrained}
    return Example(
        where,
        read,
        tools=tools_of(where, names["tools"], row.get(names["tools"])),
        untrained=frozenset(untrained),
        unused=tuple(f"{key}[].{name}" for name in unused),
    )


def system_prompt(where: str, row: Message, names: dict[str, str]) -> str:
    """Return the system prompt in a column of its own, or "" if there is none."""
    found: dict[str, str] = {}
    for name in SYSTEM:
        if name in row and name not in names.values() and has_content(row[name]):
            found[name] = valid_text(where, name, row[name])
    if len({text.strip() for text in found.values()}) > 1:
        raise bad_data(where, f"{' and '.join(map(repr, found))} differ", "keep one of them")
    return next(iter(found.values()), "")


def _is_new(where: str, system: str, messages: list[Message], key: str) -> bool:
    """Return whether a system prompt is not the conversation's own; two must not differ."""
    own = messages[0] if messages else None
    if own is None or own["role"] != "system":
        return True
    if own["content"].strip() != system.strip():
        problem = f"the system prompt beside {key!r} and the one in it differ"
        raise bad_data(where, problem, "keep one of them")
    return False


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
    if isinstance(content, list):
        content = _joined_parts(at, content)
    found: Message = {
        "role": role,
        "content": "" if content is None and calls else valid_text(at, "content", content),
    }
    if calls:
        found["tool_calls"] = _tool_calls(at, calls)
    for name in PASSED:
        if message.get(name):
            found[name] = valid_text(at, name, message[name])
    return found


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
        check_json(at, "tool_calls", arguments)
        inner = inner | {"arguments": arguments}
        read.append(call | {"function": inner} if "function" in call else inner)
    return read


def tools_of(where: str, name: str, value: Any) -> list[Any] | None:
    """Return the tools in a column, or None; TrainerError (65) if they are not JSON schemas."""
    tools = parsed(where, name, value) if value else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_data(where, f"{name!r} is not a list of objects", "give a list of JSON schemas")
    check_json(where, name, tools)
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
