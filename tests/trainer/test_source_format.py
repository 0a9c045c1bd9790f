"""The format of a source: decided over many of its rows, and shown in the status."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.common.errors import TrainerError
from tests.trainer import reading, tiny
from tests.trainer.test_build import chats_with_long, refusal, run, with_overlong
from tests.trainer.test_formats import write_parquet

Configure = Callable[..., RunConfig]
NAME = "pvc://w/x.jsonl"
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PAIR = {"prompt": "a", "completion": "b"}


def contents(folder: Path, rows: list[Any], **source: Any) -> list[list[str] | None]:
    """Return the contents of the messages of each row of a JSON Lines file."""
    path = folder / "x.jsonl"
    tiny.write_jsonl(path, rows)
    return [
        example.messages and [message["content"] for message in example.messages]
        for example in reading.examples(path, NAME, **source)
    ]


def refused(folder: Path, rows: list[Any], **source: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        contents(folder, rows, **source)
    return caught.value.message


FIRST = {
    "an empty conversation": {"conversations": []},
    "an empty text": {"conversations": ""},
    "an empty list as text": {"conversations": "[]"},
    "an unknown key beside it": {"conversations": [], "id": 1},
}


@pytest.mark.parametrize("first", FIRST)
def test_an_empty_first_row_does_not_decide(tmp_path: Path, first: str) -> None:
    rows = [FIRST[first], {"conversations": SHARED}]
    assert contents(tmp_path, rows) == [[], ["a", "b"]]


@pytest.mark.parametrize("key", ["messages", "conversations"])
@pytest.mark.parametrize("chat", [CHAT, SHARED], ids=["messages", "ShareGPT"])
def test_lists_may_be_json_in_a_text(tmp_path: Path, key: str, chat: list[dict]) -> None:
    rows = [{key: json.dumps(chat)}, {key: chat}]
    assert contents(tmp_path, rows) == [["a", "b"]] * 2
    as_text = [{key: json.dumps(chat)}]
    write_parquet(tmp_path / "x.parquet", as_text)
    (tmp_path / "x.csv").write_text(f'{key}\n"{json.dumps(chat).replace(chr(34), chr(34) * 2)}"\n')
    for name in ("x.parquet", "x.csv"):
        (example,) = reading.examples(tmp_path / name, NAME)
        assert [message["content"] for message in example.messages or []] == ["a", "b"]


def test_the_odd_row_is_blamed_and_not_the_good_ones(tmp_path: Path) -> None:
    good = {"messages": CHAT}
    assert refused(tmp_path, [PAIR, *[good] * 5]).startswith(f"{NAME} line 1: no 'messages', only")
    assert refused(tmp_path, [{"id": 1}, good]).startswith(f"{NAME} line 1: no 'messages', only")
    assert refused(tmp_path, [[1], good]).startswith(f"{NAME} line 1: a JSON list; every row")
    shared = {"messages": SHARED}
    assert refused(tmp_path, [shared, good, good]).startswith(f"{NAME} line 1, message 1: not a me")


def test_columns_that_no_row_has_are_named(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "id": 1}, {"messages": CHAT, "topic": "x"}]
    assert refused(tmp_path, rows, columns={"messages": "dialog"}) == (
        "pvc://w/x: columns names 'dialog' for messages, but none of the first 2 rows has it; they "
        "have 'id', 'messages', 'topic'"
    )
    texts = [{"body": "a"}]
    assert refused(tmp_path, texts, columns={"text": "Body"}) == (
        "pvc://w/x: columns names 'Body' for text, but none of the first 1 rows has it; they have "
        "'body'"
    )


def test_columns_that_only_some_rows_have_are_used(tmp_path: Path) -> None:
    rows = [{"talk": CHAT}, {"talk": CHAT, "functions_of_row": [{"name": "f"}]}]
    columns = {"messages": "talk", "tools": "functions_of_row"}
    assert contents(tmp_path, rows, columns=columns) == [["a", "b"]] * 2
    assert contents(tmp_path, rows[:1], columns=columns) == [["a", "b"]]


FORMATS = {
    "messages": {"messages": CHAT},
    "ShareGPT": {"conversations": SHARED},
    "Alpaca": {"instruction": "a", "output": "b"},
    "prompt/completion": PAIR,
    "text": {"text": "the cat"},
}


def test_the_format_of_each_source_is_in_the_summary(configured: Configure, claim: Path) -> None:
    for number, row in enumerate(FORMATS.values()):
        tiny.write_jsonl(claim / f"data/{number}.jsonl", [row] * 3)
    train = [{"source": f"pvc://w/data/{number}.jsonl"} for number in range(len(FORMATS))]
    config = configured(dataset={"train": train})
    for _ in range(2):  # the second time from the cache
        sources = run(config).data.sources
        assert [source.format for source in sources] == list(FORMATS)


def test_split_is_refused_at_the_first_row_that_is_not_a_text(
    configured: Configure, claim: Path
) -> None:
    chats_with_long(claim, 0)
    assert refusal(with_overlong(configured, "Split")).message == (
        "dataset.overlong Split works only for documents (Text), which pvc://w/data/train.jsonl "
        "line 1 is not; allowed are Auto, Drop, Truncate, Fail"
    )
