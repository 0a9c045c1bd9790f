"""From an example to tokens and the mask of what is trained on.

The loss mask comes from the chat template itself. Where the template marks `{% generation %}` spans
that end with the stop token, those are used. Elsewhere an assistant turn is what the template adds
between "everything before it, plus the generation prompt" and "everything up to it"; that holds
only where the longer text begins with the shorter one, which is checked for every row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.exit_codes import ExitCode
from finetune_trainer.data.formats import Example, bad_data
from finetune_trainer.errors import TrainerError

_LOSS_ON = {
    "Messages": ("Assistant", "LastAssistant", "All"),
    "PromptCompletion": ("Completion", "All"),
}


@dataclass(frozen=True)
class Document:
    """One tokenised example: 1-D arrays of equal length; trained is 1 where the token has loss."""

    tokens: NDArray[np.uint32]
    trained: NDArray[np.uint8]


class Renderer:
    """Turns examples into documents with one tokenizer."""

    def __init__(self, tokenizer: Any, loss_on: str | None) -> None:
        if not tokenizer.is_fast:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                "the model's tokenizer has no tokenizer.json; convert it to the fast format",
            )
        self._tokenizer, self._loss_on = tokenizer, loss_on
        self._stop = tokenizer.eos_token_id
        if self._stop is None:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                "the model's tokenizer has no eos_token; without one no model learns to stop",
            )
        self._marked = "{% generation" in (tokenizer.chat_template or "").replace("{%-", "{%")

    def render(self, example: Example) -> Document | None:
        """A document, or None when the example is empty or none of its tokens is trained."""
        if example.messages is None:
            document = self._prompt_completion(example)
        else:
            document = self._messages(example, example.messages)
        if document is None or not document.trained.any():
            return None
        return document

    def show(self, document: Document) -> str:
        """The text, with the trained parts in «»: what a person checks before spending money."""
        text: list[str] = []
        run: list[int] = []
        inside = False
        for token, trained in zip(document.tokens.tolist(), document.trained.tolist(), strict=True):
            if bool(trained) != inside:
                text += [self._tokenizer.decode(run), "«" if trained else "»"]
                inside, run = bool(trained), []
            run.append(token)
        return "".join([*text, self._tokenizer.decode(run), "»" if inside else ""])

    def _mode(self, kind: str, where: str) -> str:
        allowed = _LOSS_ON[kind]
        mode = self._loss_on or allowed[0]
        if mode not in allowed:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"dataset.lossOn {mode} does not fit {where}, which is {kind}; "
                f"allowed are {', '.join(allowed)}",
            )
        return mode

    def _prompt_completion(self, example: Example) -> Document | None:
        mode = self._mode("PromptCompletion", example.where)
        if not example.completion:
            return None
        encoded = self._tokenizer(example.prompt + example.completion, return_offsets_mapping=True)
        tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if tokens[-1:] == [self._stop] and offsets[-1][0] == offsets[-1][1]:
            # This tokenizer ends texts with the stop token itself; one is enough.
            tokens, offsets = tokens[:-1], offsets[:-1]
        starts = 0 if mode == "All" else len(example.prompt)
        trained = [end > starts and end > begin for begin, end in offsets]
        return _document([*tokens, self._stop], [*trained, True])

    def _messages(self, example: Example, messages: list[dict[str, str]]) -> Document | None:
        mode = self._mode("Messages", example.where)
        if not any(message["content"].strip() for message in messages):
            return None
        if self._tokenizer.chat_template is None:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{example.where} holds messages, but the model's tokenizer has no chat template; "
                "add chat_template.jinja to the model folder, or give prompt and completion",
            )
        if not any(message["role"] == "assistant" for message in messages):
            raise bad_data(
                example.where,
                "no assistant turn, nothing to learn from",
                'every conversation needs a message with the role "assistant"',
            )
        if mode != "All" and self._marked:
            marked = self._from_markers(example, messages, mode)
            if marked is not None:
                return marked
        return self._from_prefixes(example, messages, mode)

    def _from_markers(
        self, example: Example, messages: list[dict[str, str]], mode: str
    ) -> Document | None:
        """The template's own spans; None when they are not the assistant's turns.

        There are templates that mark every role, and templates that leave the stop token out.
        """
        encoded = self._apply(
            example, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        tokens, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        edges = [i for i in range(len(mask)) if mask[i] and (i + 1 == len(mask) or not mask[i + 1])]
        turns = sum(message["role"] == "assistant" for message in messages)
        if len(edges) != turns or any(tokens[i] != self._stop for i in edges):
            return None
        if mode == "LastAssistant":
            begin = edges[-2] + 1 if len(edges) > 1 else 0
            mask = [bit if i >= begin else 0 for i, bit in enumerate(mask)]
        return _document(tokens, [bool(bit) for bit in mask])

    def _from_prefixes(
        self, example: Example, messages: list[dict[str, str]], mode: str
    ) -> Document:
        text = self._text(example, messages)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if mode == "All":
            return _document(tokens, [True] * len(tokens))
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        trained = [False] * len(tokens)
        for turn in turns[-1:] if mode == "LastAssistant" else turns:
            begin, end = self._span(example, messages, turn, text)
            inside = [i for i, (a, b) in enumerate(offsets) if a >= begin and b <= end and b > a]
            stops = [i for i in inside if tokens[i] == self._stop]
            if not stops:
                raise bad_data(
                    example.where,
                    f"message {turn + 1}: the chat template ends an assistant turn without the "
                    f"stop token {self._tokenizer.eos_token!r}, so the model never learns to stop",
                    "use a chat template that ends turns with the tokenizer's eos_token",
                )
            for i in inside:
                trained[i] = i <= stops[-1]
        return _document(tokens, trained)

    def _span(
        self, example: Example, messages: list[dict[str, str]], turn: int, text: str
    ) -> tuple[int, int]:
        """Characters of an assistant turn in the whole text."""
        up_to = self._text(example, messages[: turn + 1])
        if turn:
            before = self._text(example, messages[:turn], prompt=True)
        else:
            before = self._before_the_first(example, messages[0], up_to)
        if not (up_to.startswith(before) and text.startswith(up_to)):
            raise bad_data(
                example.where,
                f"the chat template rewrites what came before message {turn + 1}, so its tokens "
                "cannot be told from the rest",
                "use lossOn: LastAssistant, or a template with {% generation %} markers",
            )
        return len(before), len(up_to)

    def _before_the_first(self, example: Example, message: dict[str, str], text: str) -> str:
        """What precedes a turn that nothing precedes: templates cannot render no message at all.

        The generation prompt is what the template adds when asked for it; where it stands in the
        turn's own text, the turn begins (a default system prompt may come before it).
        """
        prompted = self._text(example, [message], prompt=True)
        prompt = prompted.removeprefix(text)
        at = text.find(prompt) if prompt and prompted.startswith(text) else -1
        if at < 0:
            raise bad_data(
                example.where,
                "it begins with an assistant turn, and this chat template does not show where that "
                "begins",
                "let a user turn come first, or use a template with {% generation %} markers",
            )
        return text[: at + len(prompt)]

    def _text(
        self, example: Example, messages: list[dict[str, str]], *, prompt: bool = False
    ) -> str:
        text: str = self._apply(example, messages, tokenize=False, add_generation_prompt=prompt)
        return text

    def _apply(self, example: Example, messages: list[dict[str, str]], **options: bool) -> Any:
        try:
            return self._tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # templates raise whatever they like
            raise bad_data(
                example.where, f"the chat template refuses it ({error})", "mend the conversation"
            ) from error


def _document(tokens: list[int], trained: list[bool]) -> Document:
    mask = np.asarray(trained, dtype=np.uint8)
    if len(mask):
        mask[0] = 0  # nothing predicts the first token
    return Document(np.asarray(tokens, dtype=np.uint32), mask)
