"""From examples to documents: tokens, and the mask of the tokens that carry loss.

Texts are tokenized with exact character positions, so that the mask begins and ends exactly at the
spans to train on. Every span of an assistant turn is checked to end with the stop token, because a
model that never sees a trained stop token never stops.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.example import Example, UnfitRowError, unfit
from finetune_trainer.data.template import ChatTemplate, Span, assistant_turns

_PROBE = "a"
_LOSS_ON = {
    "Messages": ("Assistant", "LastAssistant", "All"),
    "PromptCompletion": ("Completion", "All"),
    "Text": ("All",),
}


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


@dataclass(frozen=True)
class Document:
    """One tokenized example: 1-D arrays of equal length; `trained` is 1 where a token has loss."""

    tokens: NDArray[np.uint32]
    trained: NDArray[np.uint8]


class Dropped(Enum):
    """The reason why an example is dropped without an error."""

    EMPTY = "empty"
    UNTRAINED = "none of its tokens is trained"


Rendered = Document | Dropped | UnfitRowError


@dataclass(frozen=True)
class _Draft:
    """An example as text, before it is tokenized. The token `stop` must end every span."""

    example: Example
    text: str
    spans: list[Span]
    stop: int | None


class Renderer:
    """A renderer of examples into documents, with one tokenizer and one chat template."""

    def __init__(self, tokenizer: Any, loss_on: str | None, template: str | None = None) -> None:
        self._tokenizer, self._loss_on = tokenizer, loss_on
        self._encoder = Encoder(tokenizer)
        self._eos = tokenizer.eos_token_id
        if self._eos is None:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                "the model's tokenizer has no eos_token, without which no model learns to stop; "
                "set eos_token in tokenizer_config.json",
            )
        self._template = template
        self._templates: dict[str, ChatTemplate] = {}

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template, so that conversations can be rendered."""
        return (self._template or self._tokenizer.chat_template) is not None

    @property
    def stop_token(self) -> str | None:
        """The token that ends an assistant turn; None without a chat template."""
        return self._chat_template(tools=False).stop if self.has_template else None

    def render(self, examples: list[Example]) -> list[Rendered]:
        """Return the document of each example, or why it has none.

        All are tokenized in one call. Raises TrainerError (64) if dataset.lossOn does not fit.
        """
        drafts = [self._draft(example) for example in examples]
        texts = [draft.text for draft in drafts if isinstance(draft, _Draft)]
        encoded = iter(self._encoder.encode(texts))
        return [
            self._finish(draft, next(encoded)) if isinstance(draft, _Draft) else draft
            for draft in drafts
        ]

    def show(self, document: Document) -> str:
        """Return the text of a document with its trained parts in «», for the user to check."""
        text: list[str] = []
        run: list[int] = []
        inside = False
        for token, trained in zip(document.tokens.tolist(), document.trained.tolist(), strict=True):
            if bool(trained) != inside:
                text += [self._tokenizer.decode(run), "«" if trained else "»"]
                inside, run = bool(trained), []
            run.append(token)
        return "".join([*text, self._tokenizer.decode(run), "»" if inside else ""])

    def _mode(self, example: Example) -> str:
        allowed = _LOSS_ON[example.format]
        mode = self._loss_on or allowed[0]
        if mode not in allowed:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"dataset.lossOn {mode} does not fit {example.where}, which is {example.format}; "
                f"allowed are {', '.join(allowed)}",
            )
        return mode

    def _draft(self, example: Example) -> _Draft | Dropped | UnfitRowError:
        mode = self._mode(example)
        if example.is_empty:
            return Dropped.EMPTY
        try:
            if example.messages is not None:
                return self._chat(example, mode)
        except UnfitRowError as error:
            return error
        if example.text is not None:
            return _Draft(example, example.text, [(0, len(example.text))], None)
        text = example.prompt + example.completion
        begin = 0 if mode == "All" else len(example.prompt)
        return _Draft(example, text, [(begin, len(text))], None)

    def _chat(self, example: Example, mode: str) -> _Draft | Dropped:
        if not self.has_template:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{example.where} holds messages, but the model's tokenizer has no chat template; "
                "set dataset.chatTemplate, or give prompt and completion",
            )
        template = self._chat_template(tools=bool(example.tools))
        turns = assistant_turns(example.messages or [])
        if not turns:
            raise unfit(
                example.where,
                "no assistant turn to learn from",
                'every conversation needs a message with the role "assistant"',
            )
        if mode == "All":
            if example.untrained:
                problem = "a message is excluded from training, but lossOn is All"
                raise unfit(example.where, problem, "use lossOn: Assistant, or remove 'train'")
            text = template.text_of(example)
            return _Draft(example, text, [(0, len(text))], None)
        wanted = turns[-1:] if mode == "LastAssistant" else turns
        wanted = [number for number in wanted if number not in example.untrained]
        if not wanted:
            return Dropped.UNTRAINED
        text, spans = template.turns(example, wanted)
        stop = self._tokenizer.convert_tokens_to_ids(template.require_stop())
        return _Draft(example, text, spans, stop)

    def _chat_template(self, *, tools: bool) -> ChatTemplate:
        """Return the template; some tokenizers have another one for conversations with tools."""
        text = self._template or self._tokenizer.get_chat_template(tools=[] if tools else None)
        if text not in self._templates:
            added = [token.content for token in self._tokenizer.added_tokens_decoder.values()]
            special = {
                name: token
                for name, token in self._tokenizer.special_tokens_map.items()
                if isinstance(token, str)
            }
            self._templates[text] = ChatTemplate(text, special, added)
        return self._templates[text]

    def _finish(self, draft: _Draft, encoded: Encoded) -> Rendered:
        tokens, mask = encoded.tokens, encoded.mask(draft.spans)
        if draft.example.messages is None:
            tokens, mask = self._with_special_tokens(tokens, mask)
        elif draft.stop is not None:
            for _, end in draft.spans:
                last = encoded.first_at(end - 1, end)
                if last == len(tokens) or tokens[last] != draft.stop:
                    problem = "the tokenizer merges a turn's stop token with the text around it"
                    remedy = "declare it as a special token of the tokenizer"
                    return unfit(draft.example.where, problem, remedy)
        if len(mask):
            mask[0] = 0  # nothing predicts the first token
        return Document(tokens, mask) if mask.any() else Dropped.UNTRAINED

    def _with_special_tokens(
        self, tokens: NDArray[np.uint32], mask: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Add the tokenizer's tokens before and after a text, and one trained end-of-text token."""
        encoder = self._encoder
        suffix = [token for token in encoder.suffix if token != self._eos]
        if tokens[-1:].tolist() != [self._eos] or suffix:
            suffix.append(self._eos)
        added = np.asarray(suffix, dtype=np.uint32)
        tokens = np.concatenate([np.asarray(encoder.prefix, dtype=np.uint32), tokens, added])
        before = np.zeros(len(encoder.prefix), dtype=np.uint8)
        mask = np.concatenate([before, mask, np.ones(len(suffix), dtype=np.uint8)])
        return tokens, mask
