"""A chat template: the text of a conversation, and the spans of the assistant's turns in it.

A turn is the text that the model has to generate: from the end of the generation prompt to the
token that ends the turn, inclusive. There are two ways to find it, and both are checked on every
conversation. A template may mark turns with `{% generation %}`. Otherwise a turn is the difference
between the conversation before it, rendered with the generation prompt, and the conversation that
ends with it; both must be prefixes of the rendered conversation.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.example import REASONING, Example, Message, unfit

Span = tuple[int, int]
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ANSWER = "the answer of a probe"
_QUESTION = "the question of a probe"
_PROBE: list[Message] = [
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _ANSWER},
]
_OTHER_TEMPLATE = "choose another dataset.chatTemplate, or fix the row"
Conversation = list[dict[str, str]]
_STOP_ANSWER = "Quokka"  # appears in no template


class ChatTemplate:
    """One chat template with the special tokens of one tokenizer."""

    def __init__(self, text: str, special: dict[str, str], tokens: list[str]) -> None:
        """Use a template's text.

        `special` are the special tokens by the name that templates use (bos_token, ...); `tokens`
        are those that may end a turn.
        """
        self.text, self._special = text, special
        self._is_marked = bool(_MARK.search(text))
        self.stop, self._prompt, self.delimiters = self._probe(tokens)

    def require_stop(self) -> str:
        """Return the token that ends an assistant turn; TrainerError (64) if none does."""
        if self.stop is None:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                "the chat template ends an assistant turn without a special token, so the model "
                "never learns to stop; use a template that ends turns with one (dataset."
                "chatTemplate)",
            )
        return self.stop

    def text_of(self, example: Example) -> str:
        """Return the rendered conversation; UnfitRowError if the template leaves something out."""
        (text,) = self._render(example, [self._messages(example)])
        self._check_complete(example, text)
        return text

    def turns(self, example: Example, wanted: list[int]) -> tuple[str, list[Span]]:
        """Return the rendered conversation and the character spans of some assistant turns.

        `wanted` are indices of messages, none of which may contain the token that ends a turn.
        Raises UnfitRowError if a span cannot be determined.
        """
        if self._is_marked:
            text, spans = self._marked(example)
            if spans is not None:
                self._check_complete(example, text)
                found = dict(zip(assistant_turns(example.messages or []), spans, strict=True))
                return text, [found[number] for number in wanted]
        text = self.text_of(example)
        simple = self._simple_turns(example, text)
        if simple is not None:
            return text, [simple[number] for number in wanted]
        return text, self._turns_by_prefixes(example, text, wanted)

    def _messages(self, example: Example) -> list[Message]:
        messages = example.messages or []
        used = {key for message in messages for key in message}
        if "tool_calls" in used and "tool_calls" not in self.text:
            self._refuse_ignored(example, "tool_calls")
        # transformers gives templates a message's reasoning under all of these names.
        reasoning = [name for name in REASONING if name in used]
        if reasoning and not any(name in self.text for name in REASONING):
            self._refuse_ignored(example, reasoning[0])
        if example.tools and "tools" not in self.text:
            self._refuse_ignored(example, "tools")
        return messages

    def _refuse_ignored(self, example: Example, name: str) -> None:
        problem = f"it has {name!r}, which this chat template does not use"
        raise unfit(example.where, problem, _OTHER_TEMPLATE)

    def _check_complete(self, example: Example, text: str) -> None:
        """Check that the text has every message: templates omit unknown roles without an error."""
        for number, message in enumerate(example.messages or [], 1):
            content = message["content"].strip()
            if _is_turn(message) or content in text:
                continue
            # Some templates write the results of tools as JSON.
            if not any(json.dumps(content, ensure_ascii=a)[1:-1] in text for a in (True, False)):
                problem = f"the chat template leaves out message {number} ({message['role']})"
                raise unfit(example.where, problem, _OTHER_TEMPLATE)

    def _marked(self, example: Example) -> tuple[str, list[Span] | None]:
        """Return the spans that the template marks, or None if they are not the assistant's turns.

        Some templates mark every role, some leave out the stop token, some also mark the turn's
        header or a part of it, and some also mark the text after the stop token.
        """
        stop = self.require_stop()
        messages = self._messages(example)
        text, marked = self._render_marked(example, messages)
        turns = [message for message in messages if _is_turn(message)]
        if len(marked) != len(turns):
            return text, None
        spans = []
        for (begin, end), message in zip(marked, turns, strict=True):
            at = text.find(stop, begin, end)
            if at < 0 or message["content"].strip() not in text[begin:at]:
                return text, None
            spans.append((self._after_prompt(text, begin), at + len(stop)))
        return text, spans

    def _after_prompt(self, text: str, begin: int) -> int:
        """Move the beginning of a span to the end of the generation prompt if it is before that."""
        size = len(self._prompt)
        at = text.find(self._prompt, max(0, begin - size), begin + size) if size else -1
        return begin if at < 0 else max(begin, at + size)

    def _simple_turns(self, example: Example, text: str) -> dict[int, Span] | None:
        """Return the span of every turn if each is generation prompt, content and stop token.

        If that is true of the last turn too, the template adds nothing to a turn that is still
        being generated, so no prefix has to be rendered. What is found is a turn, because no
        content contains the stop token. Returns None in any other case.
        """
        messages, stop = example.messages or [], self.require_stop()
        if not self._prompt or not messages or not _is_turn(messages[-1]):
            return None
        spans, at = {}, 0
        for number, message in enumerate(messages):
            if not _is_turn(message):
                continue
            if message.keys() != {"role", "content"} or not message["content"].strip():
                return None
            for content in (message["content"], message["content"].strip()):
                turn = f"{self._prompt}{content}{stop}"
                found = text.find(turn, at)
                if found >= 0:
                    break
            else:
                return None
            at = found + len(turn)
            spans[number] = (found + len(self._prompt), at)
        return spans

    def _turns_by_prefixes(self, example: Example, text: str, wanted: list[int]) -> list[Span]:
        """Return the spans of turns by rendering the conversation before and up to each of them."""
        messages, stop = example.messages or [], self.require_stop()
        # An empty conversation cannot be rendered: a first turn is found by its prompt.
        begun = [number for number in wanted if number]
        befores = self._render(example, [messages[:number] for number in begun], prompt=True)
        ended = [number for number in wanted if number + 1 < len(messages)]
        upto = dict.fromkeys(wanted, text)
        upto |= zip(ended, self._render(example, [messages[: n + 1] for n in ended]), strict=True)
        before = dict(zip(begun, befores, strict=True))
        spans = []
        for number in wanted:
            if number not in before:
                before[number] = self._before_the_first(example, upto[number])
            begin, alone = len(before[number]), upto[number]
            stop_at = alone.find(stop, begin)
            end = stop_at + len(stop)
            extends = alone.startswith(before[number])
            if extends and stop_at < 0:
                problem = f"message {number + 1}: the turn ends without {stop!r}"
                raise unfit(example.where, problem, _OTHER_TEMPLATE)
            if not (extends and text.startswith(alone[:end])):
                raise unfit(
                    example.where,
                    f"the chat template rewrites what came before message {number + 1}, so the "
                    "tokens of that message cannot be identified",
                    "use lossOn: LastAssistant, or a dataset.chatTemplate with {% generation %} "
                    "markers",
                )
            spans.append((begin, end))
        return spans

    def _before_the_first(self, example: Example, text: str) -> str:
        """Return the text before an assistant turn that is the first message.

        Templates cannot render an empty conversation. The generation prompt is what the template
        adds when it is requested; the turn begins where that prompt ends in the turn's own text (a
        default system prompt may precede it).
        """
        first = (example.messages or [])[:1]
        (alone,) = self._render(example, [first])
        (prompted,) = self._render(example, [first], prompt=True)
        prompt = prompted.removeprefix(alone)
        at = text.find(prompt) if prompt and prompted.startswith(alone) else -1
        if at < 0:
            raise unfit(
                example.where,
                "it begins with an assistant turn, and this chat template does not show where that "
                "turn begins",
                "put a user turn first, or use a template with {% generation %} markers",
            )
        return text[: at + len(prompt)]

    def _probe(self, tokens: list[str]) -> tuple[str | None, str, frozenset[str]]:
        """Return the token that ends a turn, the generation prompt and all tokens around a turn.

        They are found on an example. The tokens around the user's turn count, because templates
        may begin an answer with tokens that belong to its text, such as <think>.
        """
        probe = Example("probe", _PROBE)
        try:
            (text,) = self._render(probe, [_PROBE])
            (prompted,) = self._render(probe, [_PROBE], prompt=True)
        except TrainerError:  # the template accepts only conversations of another kind
            eos = self._special.get("eos_token")
            return (eos if eos in tokens else None), "", frozenset()
        after = text[text.rfind(_ANSWER) + len(_ANSWER) :] if _ANSWER in text else ""
        prompt = prompted.removeprefix(text) if prompted.startswith(text) else ""
        stop = first_special(after, tokens)
        before, _, rest = text.partition(_QUESTION)
        found = {token for token in tokens if token in before}
        found |= {token for token in (stop, first_special(rest, tokens)) if token}
        return stop, prompt, frozenset(found)

    def _render(
        self, example: Example, conversations: list[list[Message]], *, prompt: bool = False
    ) -> list[str]:
        texts, _ = self._apply(example, conversations, add_generation_prompt=prompt)
        return texts

    def _render_marked(self, example: Example, messages: list[Message]) -> tuple[str, list[Span]]:
        texts, spans = self._apply(example, [messages], return_assistant_tokens_mask=True)
        return texts[0], [(begin, end) for begin, end in spans[0]]

    def _apply(
        self, example: Example, conversations: list[list[Message]], **options: bool
    ) -> tuple[list[str], list[Any]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        if not conversations:
            return [], []
        try:
            texts, spans = render_jinja_template(
                conversations=conversations,
                tools=example.tools,
                chat_template=self.text,
                **options,
                **self._special,
            )
        except Exception as error:  # a template can raise any error
            problem = f"the chat template refuses it ({error})"
            raise unfit(example.where, problem, "fix the conversation") from error
        return texts, spans


def assistant_turns(messages: list[Message]) -> list[int]:
    """Return the indices of the assistant's messages."""
    return [number for number, message in enumerate(messages) if _is_turn(message)]


def _is_turn(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def end_of_turn(render: Callable[[Conversation], str], special: Iterable[str]) -> str | None:
    """Return the special token with which `render` (a chat template) ends an assistant's turn.

    A server must stop at it. The generation_config.json of a base model often names only the end of
    a document, and a chat model that is served with it never stops.

    This is the first special token after the answer that ends a conversation. If nothing ends the
    conversation, it is the first one between an answer and the next question (some templates only
    open the next turn). Returns None if the template refuses the conversation or ends turns without
    a special token.
    """
    special = list(special)
    for question in ([], [{"role": "user", "content": "Why?"}]):
        answered = [
            {"role": "user", "content": "What lives there?"},
            {"role": "assistant", "content": _STOP_ANSWER},
        ]
        try:
            text = render([*answered, *question])
        except Exception:  # a template can raise any error; then it has no turns to end
            return None
        found = first_special(text.rpartition(_STOP_ANSWER)[2], special)
        if found:
            return found
    return None


def first_special(text: str, special: Iterable[str]) -> str | None:
    """Return the special token that comes first in a text; at one position the longest one."""
    found = [(text.find(token), -len(token), token) for token in special if token in text]
    return min(found)[2] if found else None
