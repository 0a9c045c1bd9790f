"""From examples to documents: tokens, and the mask of the tokens that carry loss.

Texts are tokenized with exact character positions, so that the mask begins and ends exactly at the
spans to train on. Every span of an assistant turn is checked to end with the stop token, because a
model that never sees a trained stop token never stops. Special tokens in the text of a row are
plain characters (`special_tokens`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.exit_codes import ExitCode
from finetune_api.spec.data import SpecialTokensRule
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.example import Example, UnfitRowError, is_blank, unfit
from finetune_trainer.data.reasoning import has_reasoning, left_out
from finetune_trainer.data.special_tokens import (
    SpecialTokens,
    TokenNumbers,
    texts_of,
    without_ends,
    without_stop,
)
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

    def __init__(self, tokenizer: Any, special: SpecialTokens) -> None:
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
        self.numbers = _know(self._model, special, tokenizer.unk_token)

    def encode(self, texts: list[str], *, split_special: bool) -> list[Encoded]:
        """Return the tokens of each text, to which none is added.

        With `split_special`, special tokens in the text become plain characters, and only their
        aliases are special tokens.
        """
        self._model.encode_special_tokens = split_special
        encodings = self._model.encode_batch(texts, add_special_tokens=False)
        return [Encoded(encoding) for encoding in encodings]


def _know(model: Any, special: SpecialTokens, unknown: str | None) -> TokenNumbers:
    """Let a tokenizer know all special tokens and their aliases; return the numbers of both."""
    from tokenizers import AddedToken

    flags = {token.content: token for token in model.get_added_tokens_decoder().values()}
    for token in special.numbers:
        if token in flags:
            flags[token].special = True
    model.add_special_tokens([flags[token] for token in special.numbers if token in flags])
    # A new token gets the number after the last added one, which can be that of an old one.
    highest = max(model.get_vocab().values())
    gap = highest + 1 - model.get_vocab_size(with_added_tokens=False)
    model.add_tokens([f"\U0010fffd unused {number} \U0010fffd" for number in range(gap)])
    model.add_tokens(
        [
            AddedToken(
                alias,
                lstrip=token in flags and flags[token].lstrip,
                rstrip=token in flags and flags[token].rstrip,
                single_word=token in flags and flags[token].single_word,
                normalized=False,
            )
            for token, alias in special.aliases.items()
        ]
    )
    # A model writes its own token for what it does not know.
    unknown = getattr(model.model, "unk_token", unknown)
    return TokenNumbers(
        {model.token_to_id(alias): special.numbers[t] for t, alias in special.aliases.items()},
        [number for token, number in special.numbers.items() if token != unknown],
        size=max(model.get_vocab().values()) + 1,
    )


@dataclass(frozen=True)
class Document:
    """One tokenized example: 1-D arrays of equal length; `trained` is 1 where a token has loss.

    `special` is whether the text of the row contains special tokens as plain characters,
    `reasoning_left_out` whether the chat template left out reasoning that is not trained on.
    """

    tokens: NDArray[np.uint32]
    trained: NDArray[np.uint8]
    special: bool = False
    reasoning_left_out: bool = False


class Dropped(Enum):
    """The reason why an example is dropped without an error."""

    EMPTY = "empty"
    UNTRAINED = "none of its tokens is trained"


Rendered = Document | Dropped | UnfitRowError


@dataclass(frozen=True)
class _Draft:
    """An example as text, before it is tokenized.

    The token `stop` must end every span. `special` is the first special token of the row, which is
    plain characters; `aliases` is the number of those that the chat template writes beside it.
    `reasoning_left_out` is that of the document.
    """

    example: Example
    text: str
    spans: list[Span]
    stop: int | None = None
    special: str | None = None
    aliases: int = 0
    reasoning_left_out: bool = False

    @property
    def split_special(self) -> bool:
        """Whether special tokens in the text are plain characters."""
        return self.example.messages is None or self.special is not None


class Renderer:
    """A renderer of examples into documents, with one tokenizer and one chat template."""

    def __init__(
        self,
        tokenizer: Any,
        loss_on: str | None,
        template: str | None = None,
        special_tokens: SpecialTokensRule = "Plain",
    ) -> None:
        self._tokenizer, self._loss_on, self._rule = tokenizer, loss_on, special_tokens
        self._eos = tokenizer.eos_token_id
        if self._eos is None:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                "the model's tokenizer has no eos_token, without which no model learns to stop; "
                "set eos_token in tokenizer_config.json",
            )
        self._template = template
        self._templates: dict[str, ChatTemplate] = {}
        self._special = SpecialTokens(self._special_tokens())
        self._encoder = Encoder(tokenizer, self._special)
        before = tokenizer.convert_ids_to_tokens(self._encoder.prefix)
        # Tokens that a text has once, whether it contains them or not.
        self._before = "".join(before) if all(t in self._special.numbers for t in before) else ""
        self._after: str = tokenizer.eos_token

    def _special_tokens(self) -> dict[str, int]:
        """Return the tokens that no text may be taken for, and their numbers.

        Besides those that the tokenizer declares special, they are those around messages.
        """
        added = self._tokenizer.added_tokens_decoder
        names = {token.content for token in added.values() if token.special}
        names |= {name for name in self._tokenizer.special_tokens_map.values() if name in names}
        if self.has_template:
            for tools in (False, True):
                names |= self._chat_template(tools=tools).delimiters
        return {token.content: number for number, token in added.items() if token.content in names}

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
        encoded = {
            split: iter(
                self._encoder.encode(
                    [d.text for d in drafts if isinstance(d, _Draft) and d.split_special is split],
                    split_special=split,
                )
            )
            for split in (False, True)
        }
        return [
            self._finish(draft, next(encoded[draft.split_special]))
            if isinstance(draft, _Draft)
            else draft
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
        try:
            example, special = self._without_special_ends(example)
            if example.messages is not None:
                return self._chat(example, mode, special)
        except UnfitRowError as error:
            return error
        text = example.prompt + example.completion if example.text is None else example.text
        begin = 0 if mode == "All" else len(example.prompt)
        if not text[begin:].strip():
            return Dropped.EMPTY
        return _Draft(example, text, [(begin, len(text))], special=special)

    def _without_special_ends(self, example: Example) -> tuple[Example, str | None]:
        """Return an example and the first special token in it.

        A text that begins or ends with the token that is put there anyway has that token once.
        Raises UnfitRowError if dataset.specialTokens refuses the token.
        """
        if self._special.first_in(texts_of(example)) is None:
            return example, None
        if example.messages is None:
            example = without_ends(example, self._before, self._after)
        elif self.has_template:
            example = without_stop(example, self._chat_template(tools=bool(example.tools)).stop)
        special = self._special.first_in(texts_of(example))
        if special is not None and self._rule == "Refuse":
            problem = (
                f"the text contains {special!r}, a special token of the tokenizer, and "
                "dataset.specialTokens is Refuse"
            )
            raise unfit(example.where, problem, "remove it from the text")
        return example, special

    def _chat(self, example: Example, mode: str, special: str | None) -> _Draft | Dropped:
        if not self.has_template:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{example.where} holds messages, but the model's tokenizer has no chat template; "
                "set dataset.chatTemplate, or give prompt and completion",
            )
        template = self._chat_template(tools=bool(example.tools))
        messages = example.messages or []
        if all(is_blank(message) for message in messages):
            return Dropped.EMPTY
        turns = assistant_turns(messages)
        if not turns:
            raise unfit(
                example.where,
                "no assistant turn to learn from",
                'every conversation needs a message with the role "assistant"',
            )
        if mode == "All" and example.untrained:
            problem = "a message is excluded from training, but lossOn is All"
            raise unfit(example.where, problem, "use lossOn: Assistant, or remove 'train'")
        wanted = turns[-1:] if mode == "LastAssistant" else turns
        wanted = [number for number in wanted if number not in example.untrained]
        if not wanted:
            return Dropped.UNTRAINED
        # Of an empty answer, a model would only learn to stop at once.
        wanted = [number for number in wanted if not is_blank(messages[number])]
        if not wanted and mode != "All":
            return Dropped.EMPTY
        if special is None:
            return self._rendered(example, template, mode, wanted)
        return self._with_aliases(example, template, mode, wanted, special)

    def _rendered(
        self, example: Example, template: ChatTemplate, mode: str, wanted: list[int]
    ) -> _Draft:
        if mode == "All":
            text = template.whole_text_of(example)
            return _Draft(example, text, [(0, len(text))])
        text, spans = template.turns(example, wanted)
        stop = self._tokenizer.convert_tokens_to_ids(template.require_stop())
        lacking = any(
            has_reasoning(message) and number not in wanted and left_out(message, text)
            for number, message in enumerate(example.messages or [])
        )
        return _Draft(example, text, spans, stop, reasoning_left_out=lacking)

    def _with_aliases(
        self, example: Example, template: ChatTemplate, mode: str, wanted: list[int], token: str
    ) -> _Draft:
        """Return the draft of a conversation whose text contains special tokens."""
        special = self._special
        hidden = replace(
            example, messages=special.hide(example.messages), tools=special.hide(example.tools)
        )
        draft = self._rendered(hidden, template, mode, wanted)
        if special.show(draft.text) != template.text_of(example):
            problem = f"the chat template changes {token!r} in the text"
            raise unfit(example.where, problem, "remove it from the text")
        return replace(
            draft,
            text=special.alias(draft.text),
            special=token,
            aliases=special.count(draft.text),
        )

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
        if (problem := self._misread(draft, tokens)) is not None:
            return unfit(draft.example.where, problem, "remove it from the text")
        if draft.aliases:
            tokens = self._encoder.numbers.resolve(tokens)
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
        if not mask.any():
            return Dropped.UNTRAINED
        end = self._eos if draft.stop is None else draft.stop
        if (tokens[mask == 1] == end).all():
            return Dropped.EMPTY  # the tokenizer has no token for the text
        return Document(tokens, mask, draft.special is not None, draft.reasoning_left_out)

    def _misread(self, draft: _Draft, tokens: NDArray[np.uint32]) -> str | None:
        """Return what is wrong if text of a row has become a special token.

        A model's vocabulary may contain its special tokens as if they were text, and a tokenizer
        may change the text (its case, for example) before it looks for special tokens.
        """
        numbers = self._encoder.numbers
        if numbers.count_aliases(tokens) != draft.aliases:
            return "it contains characters that stand for special tokens during preparation"
        found = numbers.count_special(tokens)
        if not found or (not draft.split_special and found <= self._special.count(draft.text)):
            return None
        name = repr(draft.special) if draft.special else "a part"
        return f"the tokenizer takes {name} in the text for its special token"

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
