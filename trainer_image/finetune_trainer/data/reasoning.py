"""The reasoning of messages, and whether a chat template writes it.

A message holds reasoning under one of several keys, or in its content between `<think>` and
`</think>`. Many templates leave it out of earlier turns on purpose, and some leave it out of every
turn. A model must not be trained on such a turn as if it had answered without reasoning. It is
looked for in the rendered text, because a template may mention a key that it does not write.
"""

import json
import re
from collections.abc import Iterator

from finetune_trainer.data.example import REASONING, Message

_TAG = re.compile(r"</?think>")
_END = "</think>"
INLINE = "<think>"
CONTENT = "content"


def has_reasoning(message: Message) -> bool:
    """Return whether a message holds reasoning under a key or in its content."""
    keyed = len(message) > 2 and any(message.get(name) for name in REASONING)
    return keyed or _END in message["content"]


def left_out(message: Message, text: str, begin: int = 0, end: int | None = None) -> str | None:
    """Return the first part of a message that text[begin:end] lacks, or None if it is complete.

    Parts are the keys of reasoning, INLINE, CONTENT and "tool_calls". Reasoning comes before the
    answer, so that a short thought is not taken for a word of it.
    """
    at, end = begin, len(text) if end is None else end
    before = ""
    for name, part in _parts(message):
        found = text.find(part, at, end)
        if found < 0:  # perhaps because what was found before is a word of this part
            return before if before and part in text[begin:end] else name
        at, before = found + len(part), name
    for call in message.get("tool_calls", ()):
        name = call.get("function", call)["name"]
        if not any(form in text[begin:end] for form in (name, json.dumps(name)[1:-1])):
            return "tool_calls"
    return None


def is_repeated(message: Message, text: str, begin: int, end: int) -> bool:
    """Return whether text[begin:end] has more reasoning than the content of its message.

    This happens if a template does not look for reasoning in the content and writes its own, which
    may be empty, before it.
    """
    inside: int = message["content"].count(_END)
    return inside > 0 and text.count(_END, begin, end) > inside


def answer_of(message: Message) -> str:
    """Return the content of a message without the reasoning in it."""
    content: str = message["content"]
    return (_TAG.split(content)[-1] if _END in content else content).strip()


def _parts(message: Message) -> Iterator[tuple[str, str]]:
    """Yield name and text of the parts of a message in the order in which a template has them."""
    content = message["content"]
    if len(message) == 2 and _END not in content:
        yield CONTENT, content.strip()
        return
    seen = set()
    for name in REASONING:
        text = message.get(name, "").strip()
        if text and text not in seen:
            seen.add(text)
            yield name, text
    *thoughts, answer = _TAG.split(content) if _END in content else [content]
    for thought in thoughts:
        if thought.strip() not in seen:
            yield INLINE, thought.strip()
    yield CONTENT, answer.strip()
