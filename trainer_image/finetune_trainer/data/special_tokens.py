"""Special tokens that stand in the text of a row, where they are plain characters.

`</s>` in a completion would teach a model to stop in the middle of an answer, and `<|im_start|>` in
the message of a user would begin another message. Tokenizers take such text for their
special tokens. Plain text is therefore tokenized without them (`split_special_tokens` in
transformers), and conversations in three steps, because a chat template writes special tokens
itself:

1. `hide` replaces the special tokens in a row by placeholders of the same length, so that those in
   the rendered text are the template's own.
2. `alias` replaces the template's ones by other strings of the same length, which the tokenizer
   knows as aliases, and writes back what the row contains. No position changes.
3. The tokenizer, which splits special tokens but not their aliases, encodes this text.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.example import Example

# Rare ideographs: templates take them for letters, and JSON and Python print them as they are.
_PLACEHOLDERS = 0x20000
_ALIASES = 0x100000  # a plane for private use
_MOST = 0xFFFF


class SpecialTokens:
    """The special tokens of one tokenizer: text and number of each."""

    def __init__(self, numbers: dict[str, int]) -> None:
        self.numbers = dict(list(numbers.items())[:_MOST])
        tokens = list(self.numbers)
        self._pattern = re.compile(_any_of(tokens))
        self._hidden = {chr(_PLACEHOLDERS + place): token for place, token in enumerate(tokens)}
        self._placeholders = {
            token: character * len(token) for character, token in self._hidden.items()
        }
        self.aliases = {
            token: chr(_ALIASES + place) * len(token) for place, token in enumerate(tokens)
        }
        last = chr(_PLACEHOLDERS + max(0, len(tokens) - 1))
        self._runs = re.compile(f"([{chr(_PLACEHOLDERS)}-{last}])\\1*")

    def first_in(self, texts: Iterable[str]) -> str | None:
        """Return the first special token in some texts."""
        for text in texts:
            if found := self._pattern.search(text):
                return found[0]
        return None

    def count(self, text: str) -> int:
        """Return the number of special tokens in a text."""
        return len(self._pattern.findall(text))

    def hide(self, value: Any) -> Any:
        """Return JSON-like data with placeholders for the special tokens in its texts."""
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._placeholders[found[0]], value)
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def show(self, text: str) -> str:
        """Return a text with the special tokens that are hidden in it."""
        return self._runs.sub(self._shown, text)

    def _shown(self, run: re.Match[str]) -> str:
        """Return the tokens that a run of one placeholder's character stands for."""
        token = self._hidden.get(run[1], run[1])
        count, rest = divmod(len(run[0]), len(token))
        return token * count + run[1] * rest

    def alias(self, text: str) -> str:
        """Return a text with aliases of its special tokens, and with those that are hidden."""
        return self.show(self._pattern.sub(lambda found: self.aliases[found[0]], text))


def texts_of(example: Example) -> Iterator[str]:
    """Yield every text of an example that a template may write."""
    if example.messages is None:
        # Together, because a special token may begin in the one and end in the other.
        yield example.prompt + example.completion if example.text is None else example.text
        return
    for message in example.messages:
        for key, value in message.items():
            if key != "role":
                yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if example.tools:
        yield json.dumps(example.tools, ensure_ascii=False)


def without_ends(example: Example, before: str, after: str) -> Example:
    """Return plain text without the tokens at its ends that preparation adds itself."""
    if example.text is not None:
        return replace(example, text=_bare(example.text, before, after))
    prompt, completion = example.prompt, example.completion
    if prompt or not before:
        return replace(
            example, prompt=_bare(prompt, before, ""), completion=_bare(completion, "", after)
        )
    return replace(example, completion=_bare(completion, before, after))


def without_stop(example: Example, stop: str | None) -> Example:
    """Return a conversation whose answers do not repeat the token that ends each of them."""
    messages = [
        message | {"content": _bare(message["content"], "", stop or "")}
        if message["role"] == "assistant"
        else message
        for message in example.messages or []
    ]
    return replace(example, messages=messages)


class TokenNumbers:
    """The numbers of special tokens and of their aliases in a tokenizer."""

    def __init__(self, aliases: dict[int, int], special: list[int], size: int) -> None:
        """Use `aliases`, number of an alias -> of its token; all numbers are below `size`."""
        self._meaning = np.arange(size, dtype=np.uint32)
        self._is_alias, self._is_special = np.zeros((2, size), dtype=bool)
        for alias, token in aliases.items():
            self._meaning[alias] = token
            self._is_alias[alias] = True
        self._is_special[special] = True

    def resolve(self, tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return tokens with the special tokens instead of their aliases."""
        return self._meaning[tokens]

    def count_special(self, tokens: NDArray[np.uint32]) -> int:
        """Return the number of special tokens, without aliases."""
        return int(np.count_nonzero(self._is_special[tokens]))

    def count_aliases(self, tokens: NDArray[np.uint32]) -> int:
        """Return the number of aliases."""
        return int(np.count_nonzero(self._is_alias[tokens]))


def _bare(text: str, before: str, after: str) -> str:
    return text.removeprefix(before).removesuffix(after) if text else text


def _any_of(texts: Iterable[str]) -> str:
    """Return a regular expression for the longest of some texts at a position.

    It is a tree of characters: with thousands of texts, a list of alternatives would try each one.
    """
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return _expression(tree) if tree else r"(?!)"


def _expression(tree: dict[str, Any]) -> str:
    parts = []
    for character, below in tree.items():
        if character:
            parts.append(re.escape(character) + (_expression(below) if below.keys() - {""} else ""))
    joined = parts[0] if len(parts) == 1 and "" not in tree else f"(?:{'|'.join(parts)})"
    return f"{joined}?" if "" in tree else joined
