"""Keys that change a row's meaning are honoured or refused; all others are listed."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data import row_keys
from finetune_trainer.data.example import Example
from tests.trainer import reading

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BE_KIND = {"role": "system", "content": "be kind"}
MESSAGES = {"messages": [Q, A]}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
PAIR = {"prompt": "q", "completion": "a"}
ALPACA = {"instruction": "q", "output": "a"}
TEXT = {"text": "a"}


def read(tmp_path: Path, row: Any, **source: Any) -> Example:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (example,) = reading.examples(path, "x", **source)
    return example


def refusal(tmp_path: Path, row: Any, **source: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        read(tmp_path, row, **source)
    assert caught.value.code == 65
    return caught.value.message


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "row", [MESSAGES, SHAREGPT, ALPACA], ids=["messages", "ShareGPT", "Alpaca"]
)
def test_a_system_prompt_beside_a_conversation_comes_first(
    tmp_path: Path, name: str, row: dict
) -> None:
    assert read(tmp_path, {name: "be kind", **row}).messages == [BE_KIND, Q, A]
    for nothing in (None, "", "  "):
        assert read(tmp_path, {name: nothing, **row}).messages == [Q, A]


def test_a_system_prompt_comes_before_plain_text(tmp_path: Path) -> None:
    example = read(tmp_path, {"system": "be kind", **PAIR})
    assert (example.prompt, example.completion) == ("be kind\n\nq", "a")
    prompt = read(tmp_path, {"system": "be kind", **ALPACA}, chat=False).prompt
    assert prompt.startswith("be kind\n\nBelow is an instruction")


def test_equal_system_prompts_are_one_and_different_ones_are_refused(tmp_path: Path) -> None:
    row = {"messages": [BE_KIND, Q, A]}
    assert read(tmp_path, {"system": " be kind\n", **row}).messages == [BE_KIND, Q, A]
    assert refusal(tmp_path, {"system": "be brief", **row}) == (
        "x line 1: the system prompt beside 'messages' and the one in it differ; keep one of them"
    )
    twice = {"system": "be kind", "system_prompt": "be brief", **PAIR}
    assert refusal(tmp_path, twice) == (
        "x line 1: 'system' and 'system_prompt' differ; keep one of them"
    )


def test_a_column_that_is_mapped_has_no_other_meaning(tmp_path: Path) -> None:
    row = {"system": "q", "chosen": "a", "rejected": "b"}
    example = read(tmp_path, row, columns={"prompt": "system", "completion": "chosen"})
    assert (example.prompt, example.completion) == ("q", "a")
    assert example.unused == ("rejected",)


def test_alpacas_history_becomes_earlier_messages(tmp_path: Path) -> None:
    earlier = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    for history in ([["1", "2"]], '[["1", "2"]]'):
        row = {"history": history, "system": "be kind", **ALPACA}
        example = read(tmp_path, row)
        assert example.messages == [BE_KIND, *earlier, Q, A]
        assert not example.untrained
    for nothing in ([], [["", " "]], '[["", " "]]', "[]", None):
        assert read(tmp_path, {"history": nothing, **ALPACA}).messages == [Q, A]
    assert refusal(tmp_path, {"history": [["1"]], **ALPACA}) == (
        'x line 1: \'history\' is not a list of pairs of texts; give [["question", "answer"], ...]'
    )
    assert "'history'" in refusal(tmp_path, {"history": [["1", None]], **ALPACA})


def test_tools_beside_alpaca_reach_the_template(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert read(tmp_path, {"tools": [tool], **ALPACA}).tools == [tool]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_beside_an_answer_is_refused(tmp_path: Path, name: str) -> None:
    for row in (MESSAGES, SHAREGPT, ALPACA, PAIR):
        assert refusal(tmp_path, {name: "the cat sat", **row}) == (
            f"x line 1: {name!r} is not supported; put it into the answer or into its message, or "
            "remove the field"
        )
        for setting in ("off", True, None, 3):  # says whether there is any, or how much
            assert read(tmp_path, {name: setting, **row}).format != "Text"
    assert read(tmp_path, {name: "the cat sat", **TEXT}).text == "a"


FLAGS = {
    **{f"{name} {value}": ({name: value}, bool(value))
       for name in ("train", "training", "loss", "weight") for value in (True, False, 0, 1, 1.0)},
    **{f"masked {value}": ({"masked": value}, not value) for value in (True, False, 0, 1)},
    "null": ({"train": None, "masked": None, "weight": None}, True),
    "both": ({"train": True, "masked": True}, False),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "trained"), FLAGS.values(), ids=FLAGS.keys())
def test_flags_of_messages_mask_them(tmp_path: Path, flags: dict, trained: bool) -> None:
    example = read(tmp_path, {"messages": [Q, {**A, **flags}]})
    assert example.untrained == (frozenset() if trained else {1})
    assert example.unused == ()


@pytest.mark.parametrize("value", [0.5, 2, "no", "1", [], -1])
@pytest.mark.parametrize("name", ["train", "training", "loss", "weight", "masked"])
def test_other_flags_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    message = refusal(tmp_path, {"messages": [Q, {**A, name: value}]})
    assert message == (
        f"x line 1, message 2: {name!r} is {value!r}; allowed are true, false, 1 and 0"
    )


MEDIA = ["images", "image", "videos", "video", "audios", "audio", "objects"]
PREFERENCES = [
    *("chosen", "rejected", "rejected_response", "rejected_messages", "preferred_output"),
    *("non_preferred_output", "kto_tag"),
]
OTHERS = ["functions", "function_call", "documents", "chat_template_kwargs"]
EMPTY = [None, "", " ", [], {}, "[]", [None], {"bytes": None, "path": None}]


@pytest.mark.parametrize("name", MEDIA + PREFERENCES + OTHERS)
@pytest.mark.parametrize(
    "row", [MESSAGES, PAIR, ALPACA, TEXT], ids=["messages", "pair", "Alpaca", "text"]
)
def test_keys_of_another_kind_of_training_are_refused_by_name(
    tmp_path: Path, name: str, row: dict
) -> None:
    message = refusal(tmp_path, {**row, name: ["x"]})
    assert message.startswith(f"x line 1: {name!r} is not supported; ")
    for nothing in EMPTY:
        assert read(tmp_path, {**row, name: nothing}).digest() == read(tmp_path, row).digest()


REFUSED: dict[str, tuple[dict, str]] = {
    "KTO's good answer": ({**PAIR, "label": True}, "'label'"),
    "KTO's bad answer": ({**MESSAGES, "label": False}, "'label'"),
    "KTO's bad answer in CSV": ({**PAIR, "label": "False"}, "'label'"),
    "LLaMA-Factory's bad answer": ({**ALPACA, "kto_tag": False}, "'kto_tag'"),
    "a weighted row": ({**MESSAGES, "weight": 0.5}, "'weight'"),
    "a row with weight 0 in CSV": ({**PAIR, "weight": "0"}, "'weight'"),
    "a row without loss": ({**MESSAGES, "train": False}, "'train'"),
    "a masked row": ({**ALPACA, "masked": True}, "'masked'"),
    "history of a conversation": ({**MESSAGES, "history": [["1", "2"]]}, "'history'"),
    "history of a prompt": ({**PAIR, "history": [["1", "2"]]}, "'history'"),
    "tools of a prompt": ({**PAIR, "tools": [{"name": "f"}]}, "'tools'"),
    "an input of a prompt": ({**PAIR, "input": "given"}, "'input'"),
    "a context of an instruction": ({**ALPACA, "context": "given"}, "'context'"),
    "a prompt outside the conversation": ({**MESSAGES, "prompt": "be kind"}, "'prompt'"),
    "a message's image": ({"messages": [{**Q, "images": ["x"]}, A]}, "message 1: 'images'"),
    "a refusal": ({"messages": [Q, {**A, "refusal": "no"}]}, "message 2: 'refusal'"),
    "a loss mask": ({"messages": [Q, {**A, "loss_mask": [1]}]}, "message 2: 'loss_mask'"),
    "a message's tools": ({"messages": [{**BE_KIND, "tools": [{}, {"a": 1}]}]}, "1: 'tools'"),
    "a placeholder": (
        {"messages": [{"role": "user", "content": "<image> q"}, A], "images": []},
        "'<image>' stands for a part of 'images', which is empty",
    ),
    "a placeholder of a null": (
        {"prompt": "q <video>", "completion": "a", "videos": None},
        "'<video>' stands for a part of 'videos', which is empty",
    ),
}


@pytest.mark.parametrize(("row", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_lost_is_refused_by_name(tmp_path: Path, row: dict, named: str) -> None:
    assert named in refusal(tmp_path, row)


def test_history_needs_a_chat_template(tmp_path: Path) -> None:
    message = refusal(tmp_path, {**ALPACA, "history": [["1", "2"]]}, chat=False)
    assert message == (
        "x line 1: 'history' is not supported; it needs a chat template: set "
        "dataset.chatTemplate and the source's format Messages, or remove it"
    )


HARMLESS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "metadata": ({**MESSAGES, "id": 1, "source": "web"}, ("id", "source")),
    "the prompt of a conversation once more": ({**MESSAGES, "prompt": "q"}, ("prompt",)),
    "a class": ({**PAIR, "label": 3}, ("label",)),
    "a label of a document": ({**TEXT, "label": True}, ("label",)),
    "a rendered text": ({**ALPACA, "text": "q a"}, ("text",)),
    "a literal placeholder": ({"prompt": "<image>", "completion": "a"}, ()),
    "keys of messages": (
        {"messages": [{**Q, "id": 1}, {**A, "id": 2, "name": "b"}], "tools": []},
        ("messages[].id",),
    ),
    "parallel tool calls": ({**MESSAGES, "parallel_tool_calls": False}, ("parallel_tool_calls",)),
    "full weight": ({**MESSAGES, "weight": 1, "masked": False}, ("weight",)),
}


@pytest.mark.parametrize(("row", "unused"), HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_keys_are_named(tmp_path: Path, row: dict, unused: tuple[str, ...]) -> None:
    assert read(tmp_path, row).unused == unused


def test_names_of_ignored_columns_are_bounded() -> None:
    assert row_keys.listed([]) == []
    names = [f"column {number}" for number in range(20)]
    assert row_keys.listed(names) == names
    found = row_keys.listed([*names, "x", "y"])
    assert found == [*names[:19], "... and 3 more"]
    assert row_keys.listed(["x" * 100]) == ["x" * 62 + "…"]
    assert row_keys.listed(["x" * 100] * 9) == [*["x" * 62 + "…"] * 5, "... and 4 more"]
