"""Reading files of examples: JSON Lines or JSON, Messages or PromptCompletion.

A row that cannot be read ends the job and says where it is and what to do; a row that is merely
useless (empty) is the caller's to drop and count.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

Format = Literal["Messages", "PromptCompletion"]
_ROLES = ("system", "user", "assistant", "tool")
# Fields that change what a row means, and the value with which they do not.
_ROW_FIELDS: dict[str, Any] = {
    "tools": None,
    "functions": None,
    "documents": None,
    "chat_template_kwargs": None,
}
_MESSAGE_FIELDS: dict[str, Any] = {
    "tool_calls": None,
    "function_call": None,
    "tool_call_id": None,
    "reasoning_content": None,
    "thinking": None,
    "train": True,
    "weight": 1,
}
_UNREADABLE = (EOFError, OSError, zlib.error)  # gzip raises any of them for a damaged file
_SHAPES = (
    'Messages, {"messages": [{"role": "user", "content": "..."}, ...]}, or '
    'PromptCompletion, {"prompt": "...", "completion": "..."}'
)


@dataclass(frozen=True)
class Example:
    """One row of a source. `where` names file and line for people."""

    where: str
    messages: list[dict[str, str]] | None = None
    prompt: str = ""
    completion: str = ""


def bad_data(where: str, problem: str, remedy: str) -> TrainerError:
    """The one way a row is refused."""
    return TrainerError(ExitCode.BAD_DATA, f"{where}: {problem}; {remedy}")


def check_file(path: Path, name: str) -> None:
    """TrainerError (66) when there is no file."""
    if not path.exists():
        raise TrainerError(
            ExitCode.INPUT_MISSING,
            f"{name}: no such file on the claim; check the path, or copy the file there",
        )
    if not path.is_file():
        raise TrainerError(ExitCode.INPUT_MISSING, f"{name}: is a folder; name one file")


def kind_of(path: Path) -> list[str]:
    """What the name says about the contents: .jsonl or .json, .gz."""
    return [suffix for suffix in path.suffixes[-2:] if suffix in (".json", ".jsonl", ".gz")]


def read(path: Path, name: str, wanted: str) -> Iterator[Example]:
    """Examples of one file. `name` is what people call it, `wanted` Auto or a format."""
    check_file(path, name)
    kind: Format | None = None if wanted == "Auto" else _format(wanted)
    for where, row in _rows(path, name):
        _check_row(where, row)
        if kind is None:
            kind = _guess(where, row)
        yield _messages(where, row) if kind == "Messages" else _prompt_completion(where, row)


def _check_row(where: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise bad_data(where, f"a JSON {_type(row)}", f"every row must be an object: {_SHAPES}")
    _check_unsupported(where, row, _ROW_FIELDS)


def _check_unsupported(where: str, fields: dict[str, Any], unsupported: dict[str, Any]) -> None:
    """Refuse what would be left out in silence, unless it says what happens anyway."""
    for name, harmless in unsupported.items():
        value = fields.get(name)
        absent = value is None or (harmless is None and not value)
        if not absent and value != harmless:
            raise bad_data(where, f"{name!r} is not supported yet", "remove the field, or the row")


def _format(wanted: str) -> Format:
    return "Messages" if wanted == "Messages" else "PromptCompletion"


def _rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    suffixes = [s for s in path.suffixes if s != ".gz"]
    if suffixes[-1:] == [".json"]:
        yield from _json_rows(path, name)
    elif suffixes[-1:] == [".jsonl"]:
        yield from _json_lines(path, name)
    else:
        raise TrainerError(
            ExitCode.BAD_DATA,
            f"{name}: file type {''.join(path.suffixes) or '(none)'}; allowed are .jsonl and "
            ".json, optionally with .gz",
        )


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _json_lines(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                where = f"{name} line {number}"
                text = _decode(line, where, first=number == 1)
                if text.strip():
                    yield where, _parse(text, where, "every line must be one JSON object")
        except _UNREADABLE as error:
            where = f"{name} after line {number}"
            raise bad_data(where, str(error), "copy the file again") from error


def _json_rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        try:
            data = file.read()
        except _UNREADABLE as error:
            raise bad_data(name, str(error), "copy the file again") from error
    rows = _parse(_decode(data, name, first=True), name, "the file must be a list of objects")
    if not isinstance(rows, list):
        raise bad_data(name, f"a JSON {_type(rows)}", "the file must be a list of objects")
    for number, row in enumerate(rows, 1):
        yield f"{name} row {number}", row


def _decode(data: bytes, where: str, *, first: bool) -> str:
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        lines_before = data[: error.start].count(b"\n")
        line = "" if " line " in where else f" line {lines_before + 1}"
        raise bad_data(
            where + line, f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        ) from error


def _parse(text: str, where: str, expected: str) -> Any:
    cause: ValueError | None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if " line " in where else f"line {error.lineno}"
        problem, cause = f"{error.msg} at {at}", error
    except RecursionError:
        problem, cause = "nested too deeply", None
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        problem, cause = str(error).split(";")[0], error
    raise bad_data(where, f"not JSON ({problem})", f"{expected}; mend or remove it") from cause


def _guess(where: str, row: dict[str, Any]) -> Format:
    if "messages" in row:
        return "Messages"
    if "prompt" in row and "completion" in row:
        return "PromptCompletion"
    raise bad_data(where, f"an object with the keys {sorted(row)}", f"allowed are {_SHAPES}")


def _messages(where: str, row: dict[str, Any]) -> Example:
    if "messages" not in row:
        raise bad_data(where, f"no 'messages', only {sorted(row)}", f"allowed is {_SHAPES}")
    messages = row["messages"]
    if not isinstance(messages, list):
        raise bad_data(where, f"'messages' is a {_type(messages)}", "it must be a list of messages")
    return Example(where, [_message(where, n, m) for n, m in enumerate(messages, 1)])


def _message(where: str, number: int, message: Any) -> dict[str, str]:
    at = f"{where}, message {number}"
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise bad_data(at, "not a message", "it needs 'role' and 'content'")
    _check_unsupported(at, message, _MESSAGE_FIELDS)
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise bad_data(at, f"role {role!r}", f"allowed are {', '.join(_ROLES)}")
    if isinstance(content, list):
        content = _joined_parts(at, content)
    if not isinstance(content, str):
        raise bad_data(at, f"content is a {_type(content)}", "it must be text")
    _whole(at, content)
    return {"role": role, "content": content}


def _joined_parts(at: str, parts: list[Any]) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else _type(part)
            raise bad_data(at, f"a content part of type {kind!r}", "only parts of type text work")
        text = part.get("text")
        if not isinstance(text, str):
            raise bad_data(at, f"a text part whose text is a {_type(text)}", "it must be text")
        texts.append(text)
    return "".join(texts)


def _prompt_completion(where: str, row: dict[str, Any]) -> Example:
    for key in ("prompt", "completion"):
        if not isinstance(row.get(key), str):
            found = f"'{key}' is a {_type(row[key])}" if key in row else f"no '{key}'"
            raise bad_data(where, found, f"allowed is {_SHAPES}")
        _whole(where, row[key])
    return Example(where, None, row["prompt"], row["completion"])


def _whole(where: str, text: str) -> None:
    """JSON can escape one half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_data(
            where,
            f"the escape \\u{ord(text[error.start]):04x} is half a character",
            "write the whole pair, or remove it",
        ) from error


def _type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
