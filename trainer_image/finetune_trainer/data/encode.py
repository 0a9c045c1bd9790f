"""Text to tokens with exact character positions: a tokenizer's model, without post-processing."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError

_PROBE = "a"


class Encoded:
    """The tokens of one text and the characters that each of them covers."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding
        self.tokens: NDArray[np.uint32] = np.asarray(encoding.ids, dtype=np.uint32)

    def first_at(self, character: int, end: int) -> int:
        """Return the index of the token that holds a character.

        A character may produce no token. Then this is the token of the next character before `end`
        that has one, or the number of tokens.
        """
        for place in range(character, end):
            token = self._encoding.char_to_token(place)
            if token is not None:
                return int(token)
        return len(self.tokens)

    def mask(self, spans: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """Return 1 for every token with a character in a span [begin, end), else 0."""
        mask = np.zeros(len(self.tokens), dtype=np.uint8)
        for begin, end in spans:
            mask[self.first_at(begin, end) : self._after_last(end)] = 1
        return mask

    def _after_last(self, end: int) -> int:
        """Return the index after the last token of the character before `end`.

        A byte-level tokenizer makes several tokens of one character, and all of them have its
        position.
        """
        last = self._encoding.char_to_token(end - 1)  # the first of them
        if last is None:
            return len(self.tokens)
        stop = int(last) + 1
        while stop < len(self.tokens) and self._encoding.token_to_chars(stop)[0] < end:
            stop += 1
        return stop


class Encoder:
    """A tokenizer's model without its post-processor: takes batches of texts, keeps positions.

    Post-processors change positions (byte-level ones trim spaces, so that indentation would belong
    to no token) and add special tokens. Those are determined once, as `prefix` and `suffix`.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                "the model's tokenizer has no tokenizer.json; convert it to the fast format",
            )
        # Threads of the tokenizer would compete with our own processes for the same cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        bare = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        complete = tokenizer(_PROBE)["input_ids"]
        starts = range(len(complete) - len(bare) + 1)
        at = next(i for i in starts if complete[i : i + len(bare)] == bare)
        self.prefix: list[int] = complete[:at]
        self.suffix: list[int] = complete[at + len(bare) :]
        self._model = type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str()
        )
        self._model.no_truncation()
        self._model.no_padding()
        self._model.post_processor = None

    def encode(self, texts: list[str]) -> list[Encoded]:
        """Return the tokens of each text, without special tokens."""
        encodings = self._model.encode_batch(texts, add_special_tokens=False)
        return [Encoded(encoding) for encoding in encodings]
