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
from typing import Any, NoReturn

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.example import Example, Message, unfit
from finetune_trainer.data.reasoning import answer_of, has_reasoning, is_repeated, left_out

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
        """Return the rendered conversation.

        Raises UnfitRowError if the template leaves out a message that is not the assistant's.
        """
        (text,) = self._render(example, [self._messages(example)])
        self._check_complete(example, text)
        return text

    def whole_text_of(self, example: Example) -> str:
        """Return the rendered conversation; UnfitRowError if the template leaves something out."""
        text = self.text_of(example)
        for number in assistant_turns(example.messages or []):
            self._check_trained(example, number, text, (0, len(text)))
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
                return text, self._trained_parts(example, text, spans, wanted)
        text = self.text_of(example)
        simple = self._simple_turns(example, text)
        if simple is not None:
            return text, [simple[number] for number in wanted]
        for number in wanted:  # what is left out is named before what cannot be found
            self._check_trained(example, number, text, (0, len(text)))
        found = self._turns_by_prefixes(example, text, wanted)
        for number, span in zip(wanted, found, strict=True):
            self._check_trained(example, number, text, span)
        return text, found

    def _messages(self, example: Example) -> list[Message]:
        messages = example.messages or []
        used = {key for message in messages for key in message}
        if "tool_calls" in used and "tool_calls" not in self.text:
            self._refuse_ignored(example, "tool_calls")
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

    def _check_trained(self, example: Example, number: int, text: str, span: Span) -> None:
        """Check that a part of the text has all of a message that is trained on."""
        messages = example.messages or []
        message = messages[number]
        if (name := left_out(message, text, *span)) is not None:
            what = repr(name) if name in message else f"the text in {name}"
            remedy = "use a dataset.chatTemplate that writes it, or remove it from the row"
            if number != assistant_turns(messages)[-1]:
                remedy += ", or train only the last turn (lossOn: LastAssistant)"
            raise unfit(
                example.where,
                f"the chat template leaves out or changes {what} of message {number + 1}, which is "
                "trained on",
                remedy,
            )
        if span != (0, len(text)) and is_repeated(message, text, *span):
            raise unfit(
                example.where,
                "the chat template writes reasoning of its own before the text in <think> of "
                f"message {number + 1}",
                "move the text in <think> to 'reasoning_content', or remove it from one of the two",
            )

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
            if at < 0 or text.find(answer_of(message), begin, at) < 0:
                return text, None
            spans.append((begin, at + len(stop)))
        return text, spans

    def _trained_parts(
        self, example: Example, text: str, marked: list[Span], wanted: list[int]
    ) -> list[Span]:
        """Return the spans of some turns without what is not generated, given those of all."""
        turns = dict(zip(assistant_turns(example.messages or []), marked, strict=True))
        spans = []
        for number in wanted:
            begin, end = turns[number]
            self._check_trained(example, number, text, (begin, end))
            spans.append((self._after_prompt(example, text, number, begin), end))
        return spans

    def _after_prompt(self, example: Example, text: str, number: int, begin: int) -> int:
        """Move the beginning of a marked turn to the end of its generation prompt."""
        after = _end_of(self._prompt, text, begin)
        prompt = self._prompt
        if after is None and number:
            # Templates may ask in another way, for example after the result of a tool.
            before, prompt = self._asked(example, number)
            is_before = text.startswith(before + prompt)
            after = len(before + prompt) if is_before else _end_of(prompt, text, begin)
        if after is None:
            self._refuse_prompt(example, number, prompt)
        return max(begin, after)

    def _asked(self, example: Example, number: int) -> tuple[str, str]:
        """Return the conversation before a message, and the generation prompt that follows it."""
        before = [(example.messages or [])[:number]]
        (text,), (asked,) = (
            self._render(example, before),
            self._render(example, before, prompt=True),
        )
        return text, asked.removeprefix(text) if asked.startswith(text) else ""

    def _refuse_prompt(self, example: Example, number: int, prompt: str) -> NoReturn:
        message = (example.messages or [])[number]
        remedy = "remove the reasoning from" if has_reasoning(message) else "add the reasoning to"
        raise unfit(
            example.where,
            f"the chat template asks for message {number + 1} with {prompt[-80:]!r}, but does not "
            "begin the message with it, so the model would not be asked for what it learns",
            f"{remedy} the row, or use a dataset.chatTemplate whose generation prompt fits",
        )

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
            if not alone.startswith(before[number]):
                self._refuse_beginning(example, number, alone)
            stop_at = alone.find(stop, begin)
            end = stop_at + len(stop)
            if stop_at < 0:
                problem = f"message {number + 1}: the turn ends without {stop!r}"
                raise unfit(example.where, problem, _OTHER_TEMPLATE)
            if not text.startswith(alone[:end]):
                self._refuse_rewritten(example, number)
            spans.append((begin, end))
        return spans

    def _refuse_beginning(self, example: Example, number: int, text: str) -> NoReturn:
        """Refuse a turn that does not begin with the conversation before it and the prompt."""
        before, prompt = self._asked(example, number)
        if prompt and text.startswith(before):
            self._check_trained(example, number, text, (len(before), len(text)))
            self._refuse_prompt(example, number, prompt)
        self._refuse_rewritten(example, number)

    def _refuse_rewritten(self, example: Example, number: int) -> NoReturn:
        last = number == assistant_turns(example.messages or [])[-1]
        raise unfit(
            example.where,
            f"the chat template rewrites what came before message {number + 1}, so the tokens of "
            "that message cannot be identified",
            f"use {'' if last else 'lossOn: LastAssistant, or '}a dataset.chatTemplate with "
            "{% generation %} markers",
        )

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
            prompt = self._probe_prompt(probe)
        except TrainerError:  # the template accepts only conversations of another kind
            eos = self._special.get("eos_token")
            return (eos if eos in tokens else None), "", frozenset()
        after = text[text.rfind(_ANSWER) + len(_ANSWER) :] if _ANSWER in text else ""
        stop = first_special(after, tokens)
        before, _, rest = text.partition(_QUESTION)
        found = {token for token in tokens if token in before}
        found |= {token for token in (stop, first_special(rest, tokens)) if token}
        return stop, prompt, frozenset(found)

    def _probe_prompt(self, probe: Example) -> str:
        """Return the generation prompt after a question; "" if the template has none."""
        for number in (1, len(_PROBE)):
            _, prompt = self._asked(probe, number)
            if prompt:
                return prompt
        return ""

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


def _end_of(prompt: str, text: str, begin: int) -> int | None:
    """Return where a prompt ends that is before, at or around a place; None if it is not there."""
    size = len(prompt)
    at = text.find(prompt, max(0, begin - size), begin + size) if size else begin
    return None if at < 0 else at + size


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
