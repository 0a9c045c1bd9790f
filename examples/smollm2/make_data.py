"""Convert the conversations of the PyPI package chitchat-dataset to messages in JSON Lines.

    python make_data.py dataset.json OUT      writes OUT/train.jsonl and OUT/validation.jsonl

The data set has 7,168 conversations between two people (MIT licence). The first speaker becomes
`user`, the other one `assistant`. Long conversations are divided into exchanges that fit rows of
256 tokens. Every tenth conversation is held out completely, so that no exchange of it is trained
on. Both files are limited to a size that two CPU cores process in minutes; raise the limits on a
GPU.
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

MAX_CHARACTERS = 480  # about 130 tokens, to which the template adds about 40
MAX_MESSAGES = 6
LIMITS = {"train": 6000, "validation": 80}  # exchanges


def chat_turns(conversation: dict) -> list[str]:
    """Return the text of each turn; consecutive messages of a speaker are joined."""
    texts = [
        "\n".join(m["text"].strip() for m in turn).strip() for turn in conversation["messages"]
    ]
    return [text for text in texts if text]


def exchanges(texts: list[str]) -> Iterator[list[dict[str, str]]]:
    """Return parts that begin with the first speaker, end with the second one and fit a row."""
    messages: list[dict[str, str]] = []
    for position, text in enumerate(texts):
        role = "user" if position % 2 == 0 else "assistant"
        size = len(text) + sum(len(m["content"]) for m in messages)
        if (
            role == "user"
            and messages
            and (len(messages) >= MAX_MESSAGES or size > MAX_CHARACTERS / 2)
        ):
            yield messages
            messages = []
        if len(text) > MAX_CHARACTERS or size > MAX_CHARACTERS:
            messages = []
            continue
        if messages or role == "user":
            messages = [*messages, {"role": role, "content": text}]
    if messages and messages[-1]["role"] == "assistant":
        yield messages


def split(conversations: list[dict], *, held_out: bool) -> Iterator[list[dict[str, str]]]:
    """Return the exchanges of the held-out conversations, or of all the others."""
    for number, conversation in enumerate(conversations):
        if (number % 10 == 0) == held_out:
            yield from exchanges(chat_turns(conversation))


def main(source: Path, out: Path) -> None:
    """Write the training and the validation file."""
    out.mkdir(parents=True, exist_ok=True)
    conversations = list(json.loads(source.read_text(encoding="utf-8")).values())
    for name, limit in LIMITS.items():
        found = split(conversations, held_out=name == "validation")
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for messages in islice(found, limit):
                print(json.dumps({"messages": messages}, ensure_ascii=False), file=file)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
