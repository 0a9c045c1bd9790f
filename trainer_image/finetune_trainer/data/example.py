"""One row of a source in the form in which it is rendered."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import xxhash

Format = Literal["Messages", "PromptCompletion", "Text"]
Message = dict[str, Any]
# Keys of a message that hold the model's reasoning; chat templates differ in the one they use.
REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Example:
    """One row of a source. `where` is its file and line, for messages to the user.

    `messages` have the form that chat templates take; `untrained` are the indices of those that
    carry no loss.
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
        """The format that the example is rendered as."""
        if self.messages is not None:
            return "Messages"
        return "PromptCompletion" if self.text is None else "Text"

    @property
    def is_empty(self) -> bool:
        """Whether the example has no content to learn from."""
        if self.messages is not None:
            return not any(m["content"].strip() or "tool_calls" in m for m in self.messages)
        return not (self.completion if self.text is None else self.text.strip())

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
