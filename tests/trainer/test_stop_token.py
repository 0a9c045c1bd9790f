"""The stop token of real chat templates, from the package trl."""

from importlib import resources
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_trainer.data.template import end_of_turn, first_special

IN_PARTS = ("Mistral", "SmolVLM")  # their templates expect contents as lists of parts
# Family -> template, bos, eos, other special tokens, expected stop token.
FAMILIES = {
    "Llama 3": (
        "llama3_1.jinja",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"],
        "<|eot_id|>",
    ),
    "Qwen 2.5": (
        "qwen2_5.jinja",
        "",
        "<|endoftext|>",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "Qwen 3": ("qwen3.jinja", "", "<|endoftext|>", ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    # LLaVA-NeXT is based on Mistral.
    "Mistral": ("llava_next.jinja", "<s>", "</s>", ["[INST]", "[/INST]"], "</s>"),
    "SmolVLM": (
        "smolvlm.jinja",
        "<|im_start|>",
        "<|im_end|>",
        ["<image>", "<end_of_utterance>"],
        "<end_of_utterance>",
    ),
    "Gemma": (
        "gemma.jinja",
        "<bos>",
        "<eos>",
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "Phi 3": (
        "phi3.jinja",
        "<s>",
        "<|endoftext|>",
        ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "<|end|>",
    ),
    "DeepSeek V3": (
        "deepseekv3.jinja",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ["<｜User｜>", "<｜Assistant｜>"],
        "<｜end▁of▁sentence｜>",
    ),
    # Does not end turns: the token is the one that begins the next turn.
    "GLM 4": (
        "glm4moe.jinja",
        "",
        "<|endoftext|>",
        ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
        "<|user|>",
    ),
    # The token that ends the conversation differs from the one that ends earlier turns.
    "gpt-oss": (
        "gptoss.jinja",
        "<|startoftext|>",
        "<|return|>",
        ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"],
        "<|return|>",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stop_token_of_a_family_is_found(family: str) -> None:
    file, bos, eos, special, expected = FAMILIES[family]
    template = (resources.files("trl") / "chat_templates" / file).read_text()

    def render(messages: list[dict[str, Any]]) -> str:
        if family in IN_PARTS:
            parts = [[{"type": "text", "text": message["content"]}] for message in messages]
            messages = [m | {"content": part} for m, part in zip(messages, parts, strict=True)]
        texts, _ = render_jinja_template(
            [messages], chat_template=template, bos_token=bos, eos_token=eos
        )
        return texts[0]

    assert end_of_turn(render, [t for t in (bos, eos, *special) if t]) == expected


def test_a_template_without_special_tokens_has_no_stop_token() -> None:
    def render(messages: list[dict[str, str]]) -> str:
        return "".join(f"{m['role'].upper()}: {m['content']}\n" for m in messages)

    assert end_of_turn(render, ["</s>", "<|user|>"]) is None


def test_a_template_that_refuses_conversations_has_no_stop_token() -> None:
    def render(messages: list[dict[str, str]]) -> str:
        raise ValueError("only one message")

    assert end_of_turn(render, ["</s>"]) is None


def test_the_longest_token_at_a_position_is_found() -> None:
    assert first_special("\n<|end|><|user|>", ["<|user|>", "<|end|>"]) == "<|end|>"
    assert first_special("</s></s>", ["</s>", "</s></s>"]) == "</s></s>"
    assert first_special("no token", ["</s>"]) is None
