"""Reasoning is trained on where a turn is trained on, or the row is refused by name.

The templates are those of model families, from the package trl. Some write the reasoning of a
message, some only that of the last turn, and some none, although their text mentions it.
"""

from typing import Any

import pytest

from finetune_trainer.data.example import Example, UnfitRowError
from finetune_trainer.data.render import Document, Renderer
from tests.trainer import tiny
from tests.trainer.reading import rendered
from tests.trainer.test_families import CHATML, FAMILIES, TOOL, template_of, tokenizer_of
from tests.trainer.test_render import trained_parts

WHERE = "x line 1"
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
R1_END = R1[1]
GEMMA4 = ("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>")
GLM = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>")
GPT_OSS = ("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>")
# The beginning of a template's name -> special tokens, bos, eos.
OTHERS: dict[str, tuple[tuple[str, ...], str | None, str]] = {
    "deepseek": (R1, R1[0], R1[1]),
    "gemma4": (GEMMA4, "<bos>", "<eos>"),
    "glm4moe": (GLM, None, "<|endoftext|>"),
    "gptoss": (GPT_OSS, GPT_OSS[0], GPT_OSS[1]),
}
ASK = {"role": "user", "content": "the cat sat"}
ANSWER = {"role": "assistant", "content": "on a mat"}
ASK_MORE = {"role": "user", "content": "near the river"}
ANSWER_MORE = {"role": "assistant", "content": "rain fell"}


def tokenizer_for(family: str) -> Any:
    for begin, (special, bos, eos) in OTHERS.items():
        if family.startswith(begin):
            return tiny.make_tokenizer(template_of(family), special=special, bos=bos, eos=eos)
    if family in FAMILIES:
        return tokenizer_of(family)
    return tiny.make_tokenizer(template_of(family), special=CHATML, bos=None, eos="<|im_end|>")


def thought(
    message: dict[str, Any], text: str = "old hills", key: str = "reasoning_content"
) -> dict:
    return {**message, key: text}


def inline(message: dict[str, Any], text: str = "old hills") -> dict:
    return {**message, "content": f"<think>\n{text}\n</think>\n\n{message['content']}"}


def outcome(family: str, chat: list[dict], loss_on: str | None = None, **more: Any) -> Any:
    """Return the trained parts of a conversation, or the message that refuses it."""
    tokenizer = tokenizer_for(family)
    found = rendered_or_refused(Renderer(tokenizer, loss_on), Example(WHERE, chat, **more))
    return found if isinstance(found, str) else trained_parts(tokenizer, found)


def rendered_or_refused(renderer: Renderer, example: Example) -> Document | str:
    try:
        found = rendered(renderer, example)
    except UnfitRowError as error:
        return error.message
    assert isinstance(found, Document)
    return found


KEY = "leaves out or changes 'reasoning_content' of message 2, which is trained on"
INLINE = "leaves out or changes the text in <think> of message 2, which is trained on"


@pytest.mark.parametrize(
    "family",
    [
        *("deepseek_r1_distill", "deepseek_r1_distill_training", "deepseekv3_training"),
        *("qwen3_instruct_2507", "qwen3_instruct_2507_training", "gemma4", "llama3", "smollm2"),
    ],
)
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_that_a_template_never_writes_is_refused(family: str, key: str) -> None:
    found = outcome(family, [ASK, thought(ANSWER, key=key)])
    assert KEY.replace("reasoning_content", key) in found
    assert "use a dataset.chatTemplate that writes it, or remove it from the row" in found
    # A thought that is a word of the answer or of the question is not in the text, either.
    for word in ("mat", "cat"):
        assert KEY in outcome(family, [ASK, thought(ANSWER, word)])


@pytest.mark.parametrize("family", ["deepseek_r1_distill", "deepseekv3", "deepseekv3_training"])
@pytest.mark.parametrize("loss_on", [None, "LastAssistant", "All"])
def test_reasoning_that_a_template_cuts_out_of_the_content_is_refused(
    family: str, loss_on: str | None
) -> None:
    assert INLINE in outcome(family, [ASK, inline(ANSWER)], loss_on)
    # R1's own outputs begin after <think>.
    begun = {**ANSWER, "content": "old hills\n</think>\n\non a mat"}
    assert INLINE in outcome(family, [ASK, begun], loss_on)


KEPT = {
    "deepseek_r1_distill_training": f"old hills\n</think>\n\non a mat{R1_END}",
    "qwen3": "<think>\nold hills\n</think>\n\non a mat<|im_end|>",
    "qwen3_training": "<think>\nold hills\n</think>\n\non a mat<|im_end|>",
    "qwen3_6": "old hills\n</think>\n\non a mat<|im_end|>",
    "nemotron_3_nano_training": "old hills\n</think>\n\non a mat<|im_end|>",
    "llama3": "<think>\nold hills\n</think>\n\non a mat<|eot_id|>",
    "glm4moe_training": "\n<think>old hills</think>\non a mat<|user|>",
}


@pytest.mark.parametrize("family", KEPT)
def test_reasoning_in_the_content_is_trained(family: str) -> None:
    assert outcome(family, [ASK, inline(ANSWER)]) == [KEPT[family]]


DROPPING = ["qwen3", "qwen3_6", "glm4moe_training", "nemotron_3_nano_training"]


@pytest.mark.parametrize("family", DROPPING)
@pytest.mark.parametrize("think", [thought, inline], ids=["key", "content"])
def test_earlier_reasoning_may_be_left_out_only_of_messages_that_are_not_trained(
    family: str, think: Any
) -> None:
    chat = [ASK, think(ANSWER, "town warm"), ASK_MORE, think(ANSWER_MORE)]
    for loss_on in (None, "All"):
        found = outcome(family, chat, loss_on)
        assert (INLINE if think is inline else KEY) in found
        assert "or train only the last turn (lossOn: LastAssistant)" in found
    for last in (outcome(family, chat, "LastAssistant"),
                 outcome(family, chat, untrained=frozenset({1}))):  # fmt: skip
        assert len(last) == 1
        assert "old hills" in last[0]
        assert "rain fell" in last[0]
    # The last turn is the one that cannot be trained without its reasoning.
    renderer = Renderer(tokenizer_for(family), "LastAssistant")
    document = rendered(renderer, Example(WHERE, chat))
    assert isinstance(document, Document)
    assert document.reasoning_left_out
    alone = rendered(renderer, Example(WHERE, chat[2:]))
    assert isinstance(alone, Document)
    assert not alone.reasoning_left_out


@pytest.mark.parametrize("family", ["qwen3_training", "qwen3_6_training"])
@pytest.mark.parametrize("think", [thought, inline], ids=["key", "content"])
def test_templates_that_keep_earlier_reasoning_train_it(family: str, think: Any) -> None:
    chat = [ASK, think(ANSWER, "town warm"), ASK_MORE, think(ANSWER_MORE)]
    first, second = outcome(family, chat)
    assert "town warm" in first
    assert "old hills" in second


HEADER = "does not begin the message with it, so the model would not be asked for what it learns"


@pytest.mark.parametrize(
    "family", ["deepseek_r1_distill", "deepseek_r1_distill_training", "nemotron_3_nano_training"]
)
@pytest.mark.parametrize("loss_on", [None, "LastAssistant"])
def test_an_answer_without_the_reasoning_that_the_template_asks_for_is_refused(
    family: str, loss_on: str | None
) -> None:
    """The generation prompt ends with <think>, which is in no answer without reasoning."""
    found = outcome(family, [ASK, ANSWER], loss_on)
    assert "asks for message 2 with" in found
    assert "<think>" in found
    assert HEADER in found
    assert "add the reasoning to the row" in found


@pytest.mark.parametrize("family", ["qwen3_5_nothink", "qwen3_5_nothink_training"])
def test_reasoning_is_refused_where_the_template_asks_for_none(family: str) -> None:
    found = outcome(family, [ASK, thought(ANSWER)])
    assert HEADER in found
    assert "remove the reasoning from the row" in found
    assert outcome(family, [ASK, ANSWER]) == ["on a mat<|im_end|>"]


def test_the_header_of_a_turn_is_not_trained_after_a_turn_that_ends_otherwise() -> None:
    """Gpt-oss ends a last turn with another token than an earlier one."""
    (part,) = outcome("gptoss_training", [ASK, thought(ANSWER)])
    assert part == (
        "<|channel|>analysis<|message|>old hills<|end|><|start|>assistant<|channel|>final"
        "<|message|>on a mat<|return|>"
    )
    assert outcome("gptoss_training", [ASK, ANSWER]) == [
        "<|channel|>final<|message|>on a mat<|return|>"
    ]


def test_text_that_the_template_writes_between_tools_and_answer_is_not_trained() -> None:
    """R1 has no header after the result of a tool, only a token that ends all results."""
    result = {"role": "tool", "content": "near the river"}
    found = outcome("deepseek_r1_distill_training", [ASK, inline(ANSWER), result, ANSWER_MORE])
    assert found == [f"old hills\n</think>\n\non a mat{R1_END}", f"rain fell{R1_END}"]


def test_reasoning_that_a_template_does_not_recognize_is_refused() -> None:
    """Qwen3.8 writes empty reasoning before the one in the content."""
    found = outcome("qwen3_8_training", [ASK, inline(ANSWER)])
    assert "writes reasoning of its own before the text in <think> of message 2" in found
    assert "'reasoning_content'" in found
    both = thought(inline(ANSWER))
    assert "writes reasoning of its own" in outcome("qwen3", [ASK, both])


def test_the_text_beside_a_call_is_not_lost() -> None:
    """Llama 3.1 writes either the text of a message or its call."""
    call = {"type": "function", "function": {"name": "rain", "arguments": {"town": "old"}}}
    chat = [ASK, {**ANSWER, "tool_calls": [call]}]
    found = outcome("llama3_1", chat, tools=[TOOL])
    assert "leaves out or changes 'content' of message 2, which is trained on" in found
    assert "rain" in outcome("qwen2_5", chat, tools=[TOOL])[0]
