"""The loss mask, verified by decoding the trained tokens."""

from typing import Any

import pytest

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.example import Example, UnfitRowError
from finetune_trainer.data.render import Document, Dropped, Encoder, Renderer
from finetune_trainer.data.special_tokens import SpecialTokens
from finetune_trainer.data.template import ChatTemplate
from tests.trainer import tiny
from tests.trainer.reading import rendered

WHERE = "pvc://w/x.jsonl line 1"
CHAT = [
    {"role": "system", "content": "the old town"},
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "on a warm mat"},
    {"role": "user", "content": "near the river"},
    {"role": "assistant", "content": "rain fell"},
]
TEXT = (
    "<|im_start|>system\nthe old town<|im_end|>\n<|im_start|>user\nthe cat sat<|im_end|>\n"
    "<|im_start|>assistant\non a warm mat<|im_end|>\n<|im_start|>user\nnear the river<|im_end|>\n"
    "<|im_start|>assistant\nrain fell<|im_end|>\n"
)


def trained_parts(tokenizer: Any, document: Document) -> list[str]:
    """Return the runs of trained tokens, decoded."""
    parts: list[list[int]] = []
    before = 0
    for token, trained in zip(document.tokens.tolist(), document.trained.tolist(), strict=True):
        if trained and not before:
            parts.append([])
        if trained:
            parts[-1].append(token)
        before = trained
    return [tokenizer.decode(part) for part in parts]


@pytest.fixture(params=["plain", "marked"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_tokenizer")


# The first token is never trained, because nothing predicts it.
CHAT_CASES = {
    None: ["on a warm mat<|im_end|>", "rain fell<|im_end|>"],
    "Assistant": ["on a warm mat<|im_end|>", "rain fell<|im_end|>"],
    "LastAssistant": ["rain fell<|im_end|>"],
    "All": [TEXT.removeprefix("<|im_start|>")],
}


@pytest.mark.parametrize(("loss_on", "expected"), CHAT_CASES.items(), ids=map(str, CHAT_CASES))
def test_trained_parts_of_a_chat(tokenizer: Any, loss_on: str | None, expected: list[str]) -> None:
    document = rendered(Renderer(tokenizer, loss_on), Example(WHERE, CHAT))
    assert isinstance(document, Document)
    assert tokenizer.decode(document.tokens) == TEXT
    assert trained_parts(tokenizer, document) == expected


def test_both_kinds_of_template_give_the_same_tokens_and_mask(
    plain_tokenizer: Any, marked_tokenizer: Any
) -> None:
    for loss_on in CHAT_CASES:
        plain = rendered(Renderer(plain_tokenizer, loss_on), Example(WHERE, CHAT))
        marked = rendered(Renderer(marked_tokenizer, loss_on), Example(WHERE, CHAT))
        assert isinstance(plain, Document)
        assert isinstance(marked, Document)
        assert plain.tokens.tolist() == marked.tokens.tolist()
        assert plain.trained.tolist() == marked.trained.tolist()


PAIR_CASES = {
    None: ["on a warm mat<|im_end|>"],
    "Completion": ["on a warm mat<|im_end|>"],
    "All": [" cat sat on a warm mat<|im_end|>"],
}


@pytest.mark.parametrize(("loss_on", "expected"), PAIR_CASES.items(), ids=map(str, PAIR_CASES))
def test_trained_parts_of_a_pair(tokenizer: Any, loss_on: str | None, expected: list[str]) -> None:
    # The prompt's last space belongs to the completion's first token, which is trained as one.
    example = Example(WHERE, None, "the cat sat ", "on a warm mat")
    document = rendered(Renderer(tokenizer, loss_on), example)
    assert isinstance(document, Document)
    assert tokenizer.decode(document.tokens) == "the cat sat on a warm mat<|im_end|>"
    assert [part.removeprefix(" ") for part in trained_parts(tokenizer, document)] == [
        part.removeprefix(" ") for part in expected
    ]


@pytest.mark.parametrize("end", ["👍", "ok 👍🏽", "é", "日本"])
def test_all_tokens_of_a_last_character_are_trained(tokenizer: Any, end: str) -> None:
    document = rendered(Renderer(tokenizer, None), Example(WHERE, None, "the cat sat ", end))
    assert isinstance(document, Document)
    (part,) = trained_parts(tokenizer, document)
    assert part.removeprefix(" ") == f"{end}<|im_end|>"


def test_an_equal_character_after_a_span_is_not_trained(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, SpecialTokens({}))
    (encoded,) = encoder.encode(["a👍👍b"], split_special=False)
    assert tokenizer.decode(encoded.tokens[encoded.mask([(1, 2)]) == 1]) == "👍"


WRONG_MODES = {
    "Completion of a chat": ("Completion", Example(WHERE, CHAT), "Assistant, LastAssistant, All"),
    "Assistant of a pair": ("Assistant", Example(WHERE, None, "a", "b"), "Completion, All"),
}


@pytest.mark.parametrize(
    ("loss_on", "example", "allowed"), WRONG_MODES.values(), ids=WRONG_MODES.keys()
)
def test_loss_on_that_does_not_fit_the_format_is_refused(
    plain_tokenizer: Any, loss_on: str, example: Example, allowed: str
) -> None:
    with pytest.raises(TrainerError, match=f"lossOn {loss_on} does not fit .* {allowed}$") as error:
        rendered(Renderer(plain_tokenizer, loss_on), example)
    assert error.value.code == 64


def test_a_chat_without_assistant_turn_is_bad_data(tokenizer: Any) -> None:
    with pytest.raises(UnfitRowError) as error:
        rendered(Renderer(tokenizer, None), Example(WHERE, CHAT[:2]))
    assert error.value.code == 65
    assert error.value.message == (
        f"{WHERE}: no assistant turn to learn from; every conversation needs a message with the "
        'role "assistant"'
    )


USELESS = {
    "no messages": Example(WHERE, []),
    "blank messages": Example(
        WHERE, [{"role": "user", "content": " "}, {"role": "assistant", "content": "\n"}]
    ),
    "no completion": Example(WHERE, None, "the cat", ""),
    "no text": Example(WHERE, text=" \n"),
}


@pytest.mark.parametrize("example", USELESS.values(), ids=USELESS.keys())
def test_useless_examples_are_no_documents(tokenizer: Any, example: Example) -> None:
    assert rendered(Renderer(tokenizer, None), example) is Dropped.EMPTY


ROLE_BLIND = tiny.MARKED_TEMPLATE.replace(
    "{% if message['role'] == 'assistant' %}", "{% if true %}"
)
CONTENT_ONLY = tiny.MARKED_TEMPLATE.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
)
TRIMMED = tiny.MARKED_TEMPLATE.replace("{% generation %}", "{%- generation -%}")
IMPRECISE_MARKERS = {
    "every role is marked": ROLE_BLIND,
    "the stop token is outside": CONTENT_ONLY,
    "dashes": TRIMMED,
}


@pytest.mark.parametrize("template", IMPRECISE_MARKERS.values(), ids=IMPRECISE_MARKERS.keys())
def test_markers_are_used_only_if_they_mark_assistant_turns(template: str) -> None:
    tokenizer = tiny.make_tokenizer(template)
    document = rendered(Renderer(tokenizer, None), Example(WHERE, CHAT))
    assert isinstance(document, Document)
    assert trained_parts(tokenizer, document) == CHAT_CASES["Assistant"]


def test_a_template_without_stop_token_is_refused() -> None:
    tokenizer = tiny.make_tokenizer(tiny.TEMPLATE.replace("<|im_end|>", "."))
    with pytest.raises(TrainerError, match=r"never learns to stop; use a template") as error:
        rendered(Renderer(tokenizer, None), Example(WHERE, CHAT))
    assert error.value.code == 64


# Like templates of reasoning models: it leaves something out of all turns but the last.
REWRITING = tiny.TEMPLATE.replace(
    "message['content'] +",
    "(message['content'] if message['role'] != 'assistant' or loop.last "
    "else message['content'][:3]) +",
)


def test_a_template_that_rewrites_history_is_refused_by_message() -> None:
    tokenizer = tiny.make_tokenizer(REWRITING)
    what = r"leaves out or changes 'content' of message 3, which .*lossOn: LastAssistant"
    with pytest.raises(TrainerError, match=what):
        rendered(Renderer(tokenizer, None), Example(WHERE, CHAT))


def test_the_last_turn_can_be_trained_if_only_earlier_ones_are_rewritten() -> None:
    tokenizer = tiny.make_tokenizer(REWRITING)
    document = rendered(Renderer(tokenizer, "LastAssistant"), Example(WHERE, CHAT))
    assert isinstance(document, Document)
    assert trained_parts(tokenizer, document) == ["rain fell<|im_end|>"]


def test_simple_turns_and_prefixes_give_the_same_spans(
    plain_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use answers that repeat, that are parts of others, and that look like a turn's header."""
    contents = ["mat", "a mat", "mat", "<|im_start|>assistant", "\nmat ", "mat"]
    chat = [
        {"role": role, "content": text}
        for text in contents
        for role in ("user", "assistant")
    ]  # fmt: skip
    chat[2]["content"] = "<|im_start|>assistant\nmat"
    found = rendered(Renderer(plain_tokenizer, None), Example(WHERE, chat))
    monkeypatch.setattr(ChatTemplate, "_simple_turns", lambda *_: None)
    expected = rendered(Renderer(plain_tokenizer, None), Example(WHERE, chat))
    assert isinstance(found, Document)
    assert isinstance(expected, Document)
    assert found.trained.tolist() == expected.trained.tolist()
    assert found.trained.any()


def test_a_conversation_that_the_template_refuses_is_bad_data() -> None:
    tokenizer = tiny.make_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TrainerError, match=r"refuses it \(roles must alternate\)") as error:
        rendered(Renderer(tokenizer, None), Example(WHERE, CHAT))
    assert error.value.code == 65


@pytest.mark.parametrize("template", [tiny.TEMPLATE, tiny.MARKED_TEMPLATE], ids=["plain", "marked"])
def test_a_conversation_that_a_marked_template_refuses_is_bad_data(template: str) -> None:
    tokenizer = tiny.make_tokenizer("{{ raise_exception('no system role') }}" + template)
    with pytest.raises(TrainerError, match=r"refuses it \(no system role\)"):
        rendered(Renderer(tokenizer, None), Example(WHERE, CHAT))


def test_messages_need_a_chat_template() -> None:
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(TrainerError, match="has no chat template; set dataset"):
        rendered(Renderer(tokenizer, None), Example(WHERE, CHAT))


def test_a_tokenizer_without_stop_token_is_refused() -> None:
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TrainerError, match="no eos_token"):
        Renderer(tokenizer, None)


DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nthe old town<|im_end|>\n' }}"
    "{% endif %}"
)
NO_PROMPT = tiny.TEMPLATE[: tiny.TEMPLATE.index("{% if add_generation_prompt")]


@pytest.mark.parametrize("before", ["", DEFAULT_SYSTEM], ids=["bare", "default system prompt"])
def test_a_chat_may_begin_with_the_assistant(before: str) -> None:
    tokenizer = tiny.make_tokenizer(before + tiny.TEMPLATE)
    chat = [{"role": "assistant", "content": "the cat sat"}, *CHAT[1:]]
    document = rendered(Renderer(tokenizer, None), Example(WHERE, chat))
    assert isinstance(document, Document)
    assert trained_parts(tokenizer, document) == [
        "the cat sat<|im_end|>",
        "on a warm mat<|im_end|>",
        "rain fell<|im_end|>",
    ]


def test_an_assistant_turn_that_cannot_be_found_is_bad_data() -> None:
    tokenizer = tiny.make_tokenizer(NO_PROMPT)
    with pytest.raises(TrainerError, match=r"begins with an assistant turn, .* put a user turn"):
        rendered(Renderer(tokenizer, None), Example(WHERE, CHAT[2:3]))


def test_a_tokenizer_that_ends_texts_itself_ends_them_once() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.make_tokenizer()
    stop = (tokenizer.eos_token, tokenizer.eos_token_id)
    ending = TemplateProcessing(single="$A <|im_end|>", special_tokens=[stop])
    tokenizer.backend_tokenizer.post_processor = ending
    document = rendered(Renderer(tokenizer, None), Example(WHERE, None, "the cat ", "sat"))
    assert isinstance(document, Document)
    assert tokenizer.decode(document.tokens) == "the cat sat<|im_end|>"
    assert trained_parts(tokenizer, document)[-1].endswith("sat<|im_end|>")


def test_a_shown_document_marks_its_trained_parts(plain_tokenizer: Any) -> None:
    renderer = Renderer(plain_tokenizer, "LastAssistant")
    document = rendered(renderer, Example(WHERE, CHAT))
    assert isinstance(document, Document)
    assert renderer.show(document) == TEXT.replace("rain fell<|im_end|>", "«rain fell<|im_end|>»")


def test_a_template_of_the_job_replaces_the_tokenizers(plain_tokenizer: Any) -> None:
    template = tiny.TEMPLATE.replace("<|im_start|>", "")
    plain_tokenizer = tiny.make_tokenizer()
    plain_tokenizer.chat_template = None
    renderer = Renderer(plain_tokenizer, None, template)
    document = rendered(renderer, Example(WHERE, CHAT[1:3]))
    assert isinstance(document, Document)
    text = plain_tokenizer.decode(document.tokens)
    assert text == "user\nthe cat sat<|im_end|>\nassistant\non a warm mat<|im_end|>\n"


def test_turns_excluded_from_training_have_no_loss(tokenizer: Any) -> None:
    document = rendered(Renderer(tokenizer, None), Example(WHERE, CHAT, untrained=frozenset({2})))
    assert isinstance(document, Document)
    assert trained_parts(tokenizer, document) == ["rain fell<|im_end|>"]
    last = Renderer(tokenizer, "LastAssistant")
    assert rendered(last, Example(WHERE, CHAT, untrained=frozenset({4}))) is Dropped.UNTRAINED
    with pytest.raises(UnfitRowError, match="excluded from training, but lossOn is All"):
        rendered(Renderer(tokenizer, "All"), Example(WHERE, CHAT, untrained=frozenset({2})))


def test_all_of_a_text_and_its_end_token_are_trained(tokenizer: Any) -> None:
    document = rendered(Renderer(tokenizer, None), Example(WHERE, text="the cat sat"))
    assert isinstance(document, Document)
    assert tokenizer.decode(document.tokens) == "the cat sat<|im_end|>"
    assert document.trained.tolist() == [0] + [1] * (len(document.tokens) - 1)


def test_a_text_begins_with_the_tokens_that_the_tokenizer_adds() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.make_tokenizer()
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[begin])
    tokenizer.backend_tokenizer.post_processor = processor
    for example in (Example(WHERE, text="the cat"), Example(WHERE, None, "the ", "cat")):
        document = rendered(Renderer(tokenizer, None), example)
        assert isinstance(document, Document)
        assert tokenizer.decode(document.tokens) == "<|im_start|>the cat<|im_end|>"


@pytest.mark.parametrize("template", [tiny.TEMPLATE, tiny.MARKED_TEMPLATE], ids=["plain", "marked"])
def test_indentation_is_trained(template: str) -> None:
    """Use a byte-level post-processor, which trims spaces from the positions of tokens."""
    from tokenizers.processors import ByteLevel

    tokenizer = tiny.make_tokenizer(template, text="if x:\n        y\n    z\n        w\n" * 9)
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    code = "        y\n    z"
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": code}]
    document = rendered(Renderer(tokenizer, None), Example(WHERE, chat))
    assert isinstance(document, Document)
    # The line end before it makes one token with the first spaces, which is trained.
    (part,) = trained_parts(tokenizer, document)
    assert part.removeprefix("\n") == f"{code}<|im_end|>"


WITHOUT_TOOLS = tiny.TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'tool' %}"
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
UNUSED = {
    "a role": (
        WITHOUT_TOOLS,
        {"role": "tool", "content": "seven"},
        {},
        "leaves out message 6 (tool)",
    ),
    "tools": (tiny.TEMPLATE, None, {"tools": [CALL]}, "it has 'tools', which this chat template"),
    "reasoning": (
        tiny.TEMPLATE,
        {"role": "assistant", "content": "x", "reasoning": "hm"},
        {},
        "leaves out or changes 'reasoning' of message 6, which is trained on",
    ),
    "a call": (
        tiny.TEMPLATE,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {},
        "it has 'tool_calls', which this chat template does not use",
    ),
}


@pytest.mark.parametrize(("template", "more", "fields", "message"), UNUSED.values(), ids=UNUSED)
def test_a_template_that_leaves_something_out_is_refused(
    template: str, more: dict | None, fields: dict, message: str
) -> None:
    tokenizer = tiny.make_tokenizer(template)
    chat = [*CHAT, more, CHAT[4]] if more else CHAT
    with pytest.raises(UnfitRowError) as error:
        rendered(Renderer(tokenizer, None), Example(WHERE, chat, **fields))
    assert message in error.value.message


def test_a_batch_gives_the_same_documents_as_single_examples(tokenizer: Any) -> None:
    examples = [
        Example(WHERE, CHAT),
        Example(WHERE, []),
        Example(WHERE, None, "the cat ", "sat"),
        Example(
            WHERE, [*CHAT[:3], {"role": "user", "content": "what does <|im_end|> mean"}, CHAT[4]]
        ),
        Example(WHERE, CHAT[:2]),
        Example(WHERE, text="rain fell"),
    ]
    renderer = Renderer(tokenizer, None)
    found = renderer.render(examples)
    assert [type(one) for one in found] == [
        *(Document, Dropped, Document, Document, UnfitRowError, Document),
    ]
    for example, one in zip(examples, found, strict=True):
        if isinstance(one, Document):
            alone = rendered(renderer, example)
            assert isinstance(alone, Document)
            assert alone.tokens.tolist() == one.tokens.tolist()
            assert alone.trained.tolist() == one.trained.tolist()
