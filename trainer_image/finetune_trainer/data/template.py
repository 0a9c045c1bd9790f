"""A chat template: what it makes of a conversation, and where the assistant's turns lie in it.

A turn is what the model would have to say: from the end of the generation prompt to the token that
ends the turn, which is included. Two ways to find it, both checked on every conversation: the
template's own `{% generation %}` spans; elsewhere the difference between "everything before the
turn, plus the generation prompt" and "everything up to the turn", where both are the beginning of
the whole text.
"""

import json
import re
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data import stop_token
from finetune_trainer.data.refuse import unfit
from finetune_trainer.data.shapes import REASONING, Example, Message

Span = tuple[int, int]
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ANSWER = "the answer of a probe"
_PROBE: list[Message] = [
    {"role": "user", "content": "a question"},
    {"role": "assistant", "content": _ANSWER},
]
_OTHER_TEMPLATE = "choose another dataset.chatTemplate, or mend the row"


class ChatTemplate:
    """One template with the special tokens of one tokenizer."""

    def __init__(self, text: str, special: dict[str, str], tokens: list[str]) -> None:
        """`special` as the template names them (bos_token, ...); `tokens` that may end a turn."""
        self.text, self._special = text, special
        self._is_marked = bool(_MARK.search(text))
        self.stop, self._prompt = self._probe(tokens)

    def require_stop(self) -> str:
        """The token that ends an assistant turn; TrainerError (64) when there is none."""
        if self.stop is None:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                "the chat template ends an assistant turn without a special token, so the model "
                "never learns to stop; use a template that ends turns with one (dataset."
                "chatTemplate)",
            )
        return self.stop

    def whole(self, example: Example) -> str:
        """The conversation as one text; UnfitRowError when something of it got lost."""
        (text,) = self._render(example, [self._messages(example)])
        self._check_complete(example, text)
        return text

    def turns(self, example: Example, wanted: list[int]) -> tuple[str, list[Span]]:
        """The text, and the characters of the assistant turns with these message indices."""
        self._check_ends(example)
        if self._is_marked:
            text, spans = self._marked(example)
            if spans is not None:
                self._check_complete(example, text)
                numbers = [i for i, m in enumerate(example.messages or []) if _is_turn(m)]
                found = dict(zip(numbers, spans, strict=True))
                return text, [found[number] for number in wanted]
        text = self.whole(example)
        plain = self._plain(example, text)
        if plain is not None:
            return text, [plain[number] for number in wanted]
        return text, self._differences(example, text, wanted)

    def _messages(self, example: Example) -> list[Message]:
        messages = example.messages or []
        used = {key for message in messages for key in message}
        if "tool_calls" in used and "tool_calls" not in self.text:
            self._ignored(example, "tool_calls")
        # Whatever a row calls its thoughts, templates are given them under all of these names.
        thoughts = [name for name in REASONING if name in used]
        if thoughts and not any(name in self.text for name in REASONING):
            self._ignored(example, thoughts[0])
        if example.tools and "tools" not in self.text:
            self._ignored(example, "tools")
        return messages

    def _ignored(self, example: Example, name: str) -> None:
        problem = f"it has {name!r}, which this chat template does not use"
        raise unfit(example.where, problem, _OTHER_TEMPLATE)

    def _check_ends(self, example: Example) -> None:
        stop = self.require_stop()
        for number, message in enumerate(example.messages or [], 1):
            if stop in message["content"] or stop in json.dumps(message.get("tool_calls")):
                problem = f"message {number} contains {stop!r}, which ends a turn"
                raise unfit(example.where, problem, "remove it from the text")

    def _check_complete(self, example: Example, text: str) -> None:
        """Templates leave out in silence the roles that they do not know."""
        for number, message in enumerate(example.messages or [], 1):
            content = message["content"].strip()
            if _is_turn(message) or content in text:
                continue
            # Some write the answers of tools as JSON.
            if not any(json.dumps(content, ensure_ascii=a)[1:-1] in text for a in (True, False)):
                problem = f"the chat template leaves out message {number} ({message['role']})"
                raise unfit(example.where, problem, _OTHER_TEMPLATE)

    def _marked(self, example: Example) -> tuple[str, list[Span] | None]:
        """The template's own spans; None when they are not the assistant's turns.

        There are templates that mark every role, that leave the stop token out, that mark the
        header of the turn or a part of it too, and that mark what follows the stop token.
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
        """A span that begins before or within the generation prompt begins behind it instead."""
        size = len(self._prompt)
        at = text.find(self._prompt, max(0, begin - size), begin + size) if size else -1
        return begin if at < 0 else max(begin, at + size)

    def _plain(self, example: Example, text: str) -> dict[int, Span] | None:
        """Every turn, where each is the generation prompt, its content and the stop token.

        The last one too, which shows that the template adds nothing to a turn that is being made:
        then prefixes need not be rendered. No content holds the stop token, so what is found is a
        turn. None where it is not that simple.
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

    def _differences(self, example: Example, text: str, wanted: list[int]) -> list[Span]:
        messages, stop = example.messages or [], self.require_stop()
        # A conversation of no message cannot be rendered: such a turn is found by its prompt.
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
                    f"the chat template rewrites what came before message {number + 1}, so its "
                    "tokens cannot be told from the rest",
                    "use lossOn: LastAssistant, or a dataset.chatTemplate with {% generation %} "
                    "markers",
                )
            spans.append((begin, end))
        return spans

    def _before_the_first(self, example: Example, text: str) -> str:
        """What precedes a turn that nothing precedes: templates cannot render no message at all.

        The generation prompt is what the template adds when asked for it; where it stands in the
        turn's own text, the turn begins (a default system prompt may come before it).
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
                "begins",
                "let a user turn come first, or use a template with {% generation %} markers",
            )
        return text[: at + len(prompt)]

    def _probe(self, tokens: list[str]) -> tuple[str | None, str]:
        """The token that ends a turn and the generation prompt, seen on a conversation of ours."""
        probe = Example("probe", _PROBE)
        try:
            (text,) = self._render(probe, [_PROBE])
            (prompted,) = self._render(probe, [_PROBE], prompt=True)
        except TrainerError:  # it takes only conversations of another kind
            eos = self._special.get("eos_token")
            return (eos if eos in tokens else None), ""
        after = text[text.rfind(_ANSWER) + len(_ANSWER) :] if _ANSWER in text else ""
        prompt = prompted.removeprefix(text) if prompted.startswith(text) else ""
        return stop_token.first(after, tokens), prompt

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
        except Exception as error:  # templates raise whatever they like
            problem = f"the chat template refuses it ({error})"
            raise unfit(example.where, problem, "mend the conversation") from error
        return texts, spans


def _is_turn(message: Message) -> bool:
    return bool(message["role"] == "assistant")
