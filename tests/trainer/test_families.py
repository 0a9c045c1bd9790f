"""Loss masks with the chat templates of model families, verified by decoding the trained tokens.

The templates come from the package trl, as the families publish them and, under "training", with
`{% generation %}` markers. Each tokenizer has the special tokens of its family.
"""

from importlib.resources import files
from typing import Any

import pytest

from finetune_trainer.data.example import Example, UnfitRowError
from finetune_trainer.data.render import Document, Renderer
from tests.trainer import tiny
from tests.trainer.reading import rendered
from tests.trainer.test_render import trained_parts

WHERE = "x line 1"
TEMPLATES = files("trl") / "chat_templates"
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = tuple(
    f"<|{name}|>"
    for name in (
        *("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "eom_id"),
        "python_tag",
    )
)
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
PHI = ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
MISTRAL = ("<s>", "</s>")
# Template -> special tokens, bos, eos, token that ends a turn.
QWEN3 = (CHATML, None, "<|im_end|>", "<|im_end|>")
FAMILIES: dict[str, tuple[tuple[str, ...], str | None, str, str]] = {
    "llama3": (LLAMA, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "llama3_training": (LLAMA, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "llama3_1": (LLAMA, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "llama3_2": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
    "qwen2_5": (CHATML, None, "<|im_end|>", "<|im_end|>"),
    "qwen2_5_training": (CHATML, None, "<|endoftext|>", "<|im_end|>"),
    "qwen3_training": (CHATML, None, "<|im_end|>", "<|im_end|>"),
    "qwen3_instruct_2507": (CHATML, None, "<|im_end|>", "<|im_end|>"),
    "qwen3_instruct_2507_training": (CHATML, None, "<|im_end|>", "<|im_end|>"),
    "gemma": (GEMMA, "<bos>", "<eos>", "<end_of_turn>"),
    "gemma_training": (GEMMA, "<bos>", "<eos>", "<end_of_turn>"),
    "gemma3": (GEMMA, "<bos>", "<eos>", "<end_of_turn>"),
    "gemma3_training": (GEMMA, "<bos>", "<eos>", "<end_of_turn>"),
    "phi3": (PHI, "<s>", "<|endoftext|>", "<|end|>"),
    "phi3_training": (PHI, "<s>", "<|endoftext|>", "<|end|>"),
    "phi3_5": (PHI, "<s>", "<|endoftext|>", "<|end|>"),
    "phi3_5_training": (PHI, "<s>", "<|endoftext|>", "<|end|>"),
    "mistral": (MISTRAL, "<s>", "</s>", "</s>"),
    "smollm2": (CHATML, "<|im_start|>", "<|im_end|>", "<|im_end|>"),
}
# Templates in the style of two families whose text models have none in trl.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL_STYLE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    "{% for message in turns %}{% if message['role'] == 'user' %}"
    "{% if tools and message == (turns | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}"
    "{% endif %}{{ '[INST] ' + (system + '\n\n' if system and loop.first else '') + "
    "message['content'] + '[/INST]' }}{% elif message['tool_calls'] %}"
    "{{ '[TOOL_CALLS] ' + message['tool_calls'] | tojson + eos_token }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '[TOOL_RESULTS] ' + {'content': message['content']} | tojson + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
)
OWN = {"smollm2": SMOLLM2, "mistral": MISTRAL_STYLE}
# Qwen3 writes empty reasoning before an answer without any.
THOUGHT = {"qwen3_training": "<think>\n\n</think>\n\n"}
CHAT = [
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "on a warm mat"},
    {"role": "user", "content": "near the river"},
    {"role": "assistant", "content": "rain fell\n  over hills"},
]
SYSTEM = {"role": "system", "content": "the old town"}


def template_of(family: str) -> str:
    return OWN.get(family) or (TEMPLATES / f"{family}.jinja").read_text()


def tokenizer_of(family: str) -> Any:
    special, bos, eos, _ = FAMILIES.get(family, QWEN3)
    return tiny.make_tokenizer(template_of(family), special=special, bos=bos, eos=eos)


def parts(family: str, chat: list[dict], loss_on: str | None = None, **fields: Any) -> list[str]:
    tokenizer = tokenizer_of(family)
    document = rendered(Renderer(tokenizer, loss_on), Example(WHERE, chat, **fields))
    assert isinstance(document, Document)
    expected = tokenizer.apply_chat_template(chat, tokenize=True, tools=fields.get("tools"))
    assert document.tokens.tolist() == expected["input_ids"]
    return [part.strip(" ") for part in trained_parts(tokenizer, document)]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_their_stop_tokens_are_trained_and_nothing_else(family: str) -> None:
    stop, thought = FAMILIES[family][3], THOUGHT.get(family, "")
    answers = [f"{thought}{message['content']}{stop}" for message in CHAT[1::2]]
    assert parts(family, CHAT) == answers
    assert parts(family, CHAT, "LastAssistant") == answers[1:]
    assert parts(family, CHAT, untrained=frozenset({3})) == answers[:1]
    assert Renderer(tokenizer_of(family), None).stop_token == stop


@pytest.mark.parametrize("family", FAMILIES)
def test_system_messages_are_not_trained_or_are_refused(family: str) -> None:
    chat = [SYSTEM, *CHAT[:2]]
    stop, thought = FAMILIES[family][3], THOUGHT.get(family, "")
    if family in ("gemma", "gemma_training"):
        with pytest.raises(UnfitRowError, match=r"refuses it \(System role not supported\)"):
            parts(family, chat)
    else:
        assert parts(family, chat) == [f"{thought}on a warm mat{stop}"]


def test_earlier_answers_of_a_template_that_removes_reasoning_are_refused() -> None:
    """Qwen3 removes the reasoning of all turns but the last, so only the last can be trained."""
    with pytest.raises(UnfitRowError, match="rewrites what came before message 2"):
        parts("qwen3", CHAT)
    answer = "<think>\n\n</think>\n\nrain fell\n  over hills<|im_end|>"
    assert parts("qwen3", CHAT, "LastAssistant") == [answer]
    assert parts("qwen3", CHAT[2:]) == [answer]


def test_reasoning_is_trained() -> None:
    thinking = [CHAT[0], {**CHAT[1], "reasoning_content": "hm, a cat"}]
    expected = ["<think>\nhm, a cat\n</think>\n\non a warm mat<|im_end|>"]
    assert parts("qwen3", thinking) == parts("qwen3_training", thinking) == expected


TOOL = {
    "type": "function",
    "function": {
        "name": "rain",
        "description": "answers whether rain fell",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
CALL = {
    "id": "a1b2c3d4e",
    "type": "function",
    "function": {"name": "rain", "arguments": {"town": "old"}},
}
TOOL_CHAT = [
    {"role": "user", "content": "did rain fall"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "yes it fell", "tool_call_id": "a1b2c3d4e", "name": "rain"},
    {"role": "assistant", "content": "rain fell"},
]
CALLS = {
    "qwen2_5": '<tool_call>\n{"name": "rain", "arguments": {"town": "old"}}\n'
    "</tool_call><|im_end|>",
    "qwen2_5_training": '<tool_call>\n{"name": "rain", "arguments": {"town": "old"}}\n'
    "</tool_call><|im_end|>",
    "qwen3_instruct_2507": '<tool_call>\n{"name": "rain", "arguments": {"town": "old"}}\n'
    "</tool_call><|im_end|>",
    "llama3_1": '{"name": "rain", "parameters": {"town": "old"}}<|eot_id|>',
    "llama3_2": '{"name": "rain", "parameters": {"town": "old"}}<|eot_id|>',
    "mistral": '[TOOL_CALLS] [{"id": "a1b2c3d4e", "type": "function", "function": {"name": "rain", '
    '"arguments": {"town": "old"}}}]</s>',
}


@pytest.mark.parametrize("family", CALLS)
def test_tool_calls_are_trained_and_results_of_tools_are_not(family: str) -> None:
    stop = FAMILIES[family][3]
    found = parts(family, TOOL_CHAT, tools=[TOOL])
    assert [part.lstrip("\n") for part in found] == [CALLS[family], f"rain fell{stop}"]


def test_a_template_that_moves_the_tools_is_refused() -> None:
    """Mistral's template puts the tools before the last user turn."""
    chat = [*TOOL_CHAT, *CHAT[:2]]
    with pytest.raises(UnfitRowError, match="rewrites what came before message 2"):
        parts("mistral", chat, tools=[TOOL])
    assert parts("mistral", chat, "LastAssistant", tools=[TOOL]) == ["on a warm mat</s>"]


@pytest.mark.parametrize("family", ["llama3", "gemma", "phi3", "smollm2"])
def test_templates_without_tools_refuse_them(family: str) -> None:
    with pytest.raises(UnfitRowError, match="'tool_calls', which this chat template does not use"):
        parts(family, TOOL_CHAT, tools=[TOOL])


def test_a_shown_document_marks_its_trained_parts() -> None:
    tokenizer = tokenizer_of("llama3")
    renderer = Renderer(tokenizer, None)
    document = rendered(renderer, Example(WHERE, CHAT[:2]))
    assert isinstance(document, Document)
    assert renderer.show(document) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nthe cat sat<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«on a warm mat<|eot_id|>»"
    )
