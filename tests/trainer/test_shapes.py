"""The shapes of rows, and columns with other names."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.example import Example
from tests.trainer import reading

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CALL = {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ANSWER = {"role": "tool", "content": "7", "tool_call_id": "123456789", "name": "f"}


def read(tmp_path: Path, row: Any, **source: Any) -> Example:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (example,) = reading.examples(path, "x", **source)
    return example


CHATS: dict[str, tuple[dict, dict]] = {
    "messages": ({"messages": TURNS}, {}),
    "as JSON in a text": ({"messages": json.dumps(TURNS)}, {}),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {},
    ),
    "ShareGPT with plain roles": (
        {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        {},
    ),
    "messages called conversations": ({"conversations": TURNS}, {}),
    "other names": (
        {"chat": [{"who": "user", "what": "q"}, {"who": "assistant", "what": "a"}]},
        {"columns": {"messages": "chat", "role": "who", "content": "what"}},
    ),
    "ShareGPT under another name": (
        {"chat": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"columns": {"messages": "chat"}, "format": "Messages"},
    ),
    "Alpaca with a chat template": ({"instruction": "q", "input": "", "output": "a"}, {}),
    "Alpaca with format Messages": (
        {"instruction": "q", "output": "a"},
        {"format": "Messages", "chat": False},
    ),
}


@pytest.mark.parametrize(("row", "source"), CHATS.values(), ids=CHATS.keys())
def test_conversations(tmp_path: Path, row: dict, source: dict) -> None:
    assert read(tmp_path, row, **source).messages == TURNS


PAIRS: dict[str, tuple[dict, dict, tuple[str, str]]] = {
    "prompt and completion": ({"prompt": "q", "completion": "a"}, {}, ("q", "a")),
    "other names": (
        {"question": "q", "answer": "a", "prompt": 5},
        {"columns": {"prompt": "question", "completion": "answer"}},
        ("q", "a"),
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"format": "PromptCompletion"},
        (
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
            "3",
        ),
    ),
    "Alpaca without a chat template": (
        {"instruction": "Sing.", "input": None, "output": "La"},
        {"chat": False},
        (
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nSing.\n\n### Response:\n",
            "La",
        ),
    ),
}


@pytest.mark.parametrize(("row", "source", "pair"), PAIRS.values(), ids=PAIRS.keys())
def test_pairs(tmp_path: Path, row: dict, source: dict, pair: tuple[str, str]) -> None:
    example = read(tmp_path, row, **source)
    assert (example.messages, example.prompt, example.completion) == (None, *pair)


def test_alpaca_input_follows_the_instruction(tmp_path: Path) -> None:
    messages = read(tmp_path, {"instruction": "Add.", "input": "1 2", "output": "3"}).messages
    assert messages == [
        {"role": "user", "content": "Add.\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]


def test_documents(tmp_path: Path) -> None:
    assert read(tmp_path, {"text": "a b", "id": 1}).text == "a b"
    assert read(tmp_path, {"body": "a b"}, columns={"text": "body"}).text == "a b"


def test_tools_and_their_results_reach_the_template(tmp_path: Path) -> None:
    openai = CALL | {"function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            TURNS[0],
            {"role": "assistant", "content": None, "tool_calls": [openai]},
            ANSWER,
            {"role": "assistant", "content": "7", "tool_calls": None},
        ],
        "tools": json.dumps([TOOL]),
    }
    example = read(tmp_path, row)
    assert example.tools == [TOOL]
    assert example.messages == [
        TURNS[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ANSWER,
        {"role": "assistant", "content": "7"},
    ]


def test_turns_can_be_excluded_from_training(tmp_path: Path) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a", "train": False},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a", "weight": 0},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a", "weight": 1, "train": True},
        ],
        "system": "be kind",
    }
    example = read(tmp_path, row)
    assert example.messages is not None
    assert example.messages[0] == {"role": "system", "content": "be kind"}
    assert example.untrained == {2, 4}


def test_rows_of_another_format_than_the_named_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"\['text'\] is Text; format is Messages; allowed"):
        read(tmp_path, {"text": "x"}, format="Messages")
    with pytest.raises(TrainerError, match="is PromptCompletion; format is Text"):
        read(tmp_path, {"prompt": "x", "completion": "y"}, format="Text")


COPIES = [
    ({"messages": TURNS}, {"messages": TURNS, "id": 1}),
    ({"text": "x"}, {"text": "x", "source": "y"}),
    ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "n": 2}),
]
DIFFERENT = [
    ({"prompt": "ab", "completion": "c"}, {"prompt": "a", "completion": "bc"}),
    ({"messages": TURNS}, {"messages": TURNS, "tools": [TOOL]}),
    ({"text": "x"}, {"text": "x "}),
]


def test_only_copies_have_equal_digests(tmp_path: Path) -> None:
    for one, other in COPIES:
        assert read(tmp_path, one).digest() == read(tmp_path, other).digest()
    for one, other in DIFFERENT:
        assert read(tmp_path, one).digest() != read(tmp_path, other).digest()
