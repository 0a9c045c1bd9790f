"""One row of a source: the form in which it is rendered, checks of its fields, and its errors."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import xxhash

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.json_text import Unreadable, decode

Format = Literal["Messages", "PromptCompletion", "Text"]
Message = dict[str, Any]
# Keys of a message that hold the model's reasoning; chat templates differ in the one they use.
REASONING = ("reasoning_content", "reasoning", "thinking")
_ESCAPED_BYTES = range(0xDC80, 0xDD00)  # what Python's "surrogateescape" makes of bytes


@dataclass(frozen=True)
class Example:
    """One row of a source. `where` is its file and line, for messages to the user.

    `messages` have the form that chat templates take; `untrained` are the indices of those that
    carry no loss. `unused` are the keys of the row that have no effect.
    """

    where: str
    messages: list[Message] | None = None
    prompt: str = ""
    completion: str = ""
    text: str | None = None
    tools: list[Any] | None = None
    untrained: frozenset[int] = field(default_factory=frozenset)
    unused: tuple[str, ...] = ()

    @property
    def format(self) -> Format:
        """The format that the example is rendered as."""
        if self.messages is not None:
            return "Messages"
        return "PromptCompletion" if self.text is None else "Text"

    def texts(self) -> list[str]:
        """Return the texts that are rendered."""
        if self.messages is not None:
            return [message["content"] for message in self.messages]
        return [self.prompt, self.completion] if self.text is None else [self.text]

    def digest(self) -> int:
        """Return the xxh3-64 of the contents: equal for copies, whatever file they are in."""
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


def is_blank(message: Message) -> bool:
    """Return whether a message says nothing: no text, no reasoning and no tool call."""
    return not message["content"].strip() and not any(
        message.get(name) for name in ("tool_calls", *REASONING)
    )


def valid_text(where: str, name: str, text: Any) -> str:
    """Return the text of a field; TrainerError (65) if it is not text that can be tokenized.

    No tokenizer accepts lone surrogates: JSON can escape one half of a pair, and readers put them
    in the place of bytes that are not UTF-8.
    """
    if not isinstance(text, str):
        raise bad_data(where, f"{name!r} is a {json_type(text)}", "it must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if code in _ESCAPED_BYTES:
            problem = f"byte 0x{code & 0xFF:02x} of {name!r} is not UTF-8"
            raise bad_data(where, problem, "save the file as UTF-8") from error
        raise bad_data(
            where,
            f"the escape \\u{code:04x} is half of a surrogate pair",
            "write the complete pair, or remove it",
        ) from error
    return text


def check_json(where: str, name: str, value: Any) -> None:
    """Raise TrainerError (65) if a list or object holds what cannot be written as JSON."""
    if isinstance(value, Unreadable):
        raise bad_data(where, f"{name!r} holds a {value.what}", "remove it")
    if isinstance(value, str):
        valid_text(where, name, value)
    elif isinstance(value, list):
        for item in value:
            check_json(where, name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            valid_text(where, name, key)
            check_json(where, name, item)


def parsed(where: str, name: str, value: Any) -> Any:
    """Return a list or object that may be given as JSON in a text, as it must be in CSV."""
    if not isinstance(value, str):
        return value
    try:
        return decode(value) if value.strip() else []
    except (ValueError, RecursionError) as error:
        problem = f"{name!r} is text that is not valid JSON ({error})"
        raise bad_data(where, problem, "fix or remove it") from error


class UnfitRowError(TrainerError):
    """A row that can be read but not rendered. It is dropped and counted; above 5 % the job fails.

    See `ExampleCounts.check`.
    """


def bad_data(where: str, problem: str, remedy: str) -> TrainerError:
    """Return the error of a row or file that cannot be read, which ends the job."""
    return TrainerError(ExitCode.BAD_DATA, f"{where}: {problem}; {remedy}")


def unfit(where: str, problem: str, remedy: str) -> UnfitRowError:
    """Return the error of a row that the chat template cannot render."""
    return UnfitRowError(ExitCode.BAD_DATA, f"{where}: {problem}; {remedy}")


def json_type(value: Any) -> str:
    """Return the name of a value's JSON type, or what an unreadable value is."""
    if isinstance(value, Unreadable):
        return value.what
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
