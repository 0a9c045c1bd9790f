"""Formats of data files, and the messages about files that cannot be read."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.columnar_files import columns_without_nulls
from finetune_trainer.data.example import Example
from finetune_trainer.data.read import blocks
from tests.trainer import reading

CHAT = {
    "messages": [
        {"role": "user", "content": "Grüße?"},
        {"role": "assistant", "content": "Ja."},
    ]
}
PAIR = {"prompt": "a", "completion": "b"}
NAME = "pvc://w/data/chats.jsonl"


def read(path: Path, wanted: str = "Auto") -> list[Example]:
    return reading.examples(path, NAME, format=wanted)


def refusal(path: Path, wanted: str = "Auto") -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        read(path, wanted)
    return caught.value


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


READABLE = {
    "json lines": ("x.jsonl", lines(CHAT, CHAT)),
    "byte order mark": ("x.jsonl", b"\xef\xbb\xbf" + lines(CHAT, CHAT)),
    "windows line ends": ("x.jsonl", lines(CHAT, CHAT).replace(b"\n", b"\r\n")),
    "no newline at the end": ("x.jsonl", lines(CHAT, CHAT)[:-1]),
    "blank lines": ("x.jsonl", b"\n" + lines(CHAT) + b"  \n" + lines(CHAT)),
    "gzip": ("x.jsonl.gz", gzip.compress(lines(CHAT, CHAT))),
    "a list": ("x.json", json.dumps([CHAT, CHAT]).encode()),
    "a list, byte order mark, gzip": (
        "x.json.gz",
        gzip.compress(b"\xef\xbb\xbf" + json.dumps([CHAT, CHAT]).encode()),
    ),
    "dots in the name": ("v1.2.chat.jsonl", lines(CHAT, CHAT)),
    "fields that have no effect": (
        "x.jsonl",
        lines(
            {**CHAT, "tools": None, "functions": []},
            {"messages": [{**turn, "train": True, "weight": 1} for turn in CHAT["messages"]]},
        ),
    ),
    "unknown keys": ("x.jsonl", lines({**CHAT, "id": 1}, {**CHAT, "id": None})),
}


@pytest.mark.parametrize(("file", "data"), READABLE.values(), ids=READABLE.keys())
def test_readable_files(tmp_path: Path, file: str, data: bytes) -> None:
    (tmp_path / file).write_bytes(data)
    examples = read(tmp_path / file)
    assert [example.messages for example in examples] == [CHAT["messages"]] * 2


def test_the_first_row_decides_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(PAIR, PAIR))
    assert [(e.prompt, e.completion, e.messages) for e in read(path)] == [("a", "b", None)] * 2


def test_text_parts_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]}
    (tmp_path / "x.jsonl").write_bytes(lines(row))
    messages = read(tmp_path / "x.jsonl")[0].messages
    assert messages is not None
    assert messages[0]["content"] == "one two"


def say(content: object, role: object = "user") -> dict:
    return {"messages": [{"role": role, "content": content}]}


SHAPES = (
    'Messages, {"messages": [{"role": "user", "content": "..."}, ...]}, or ShareGPT, '
    '{"conversations": [{"from": "human", "value": "..."}, ...]}; '
    'PromptCompletion, {"prompt": "...", "completion": "..."}, or Alpaca, '
    '{"instruction": "...", "input": "...", "output": "..."}; Text, {"text": "..."}; '
    "dataset.train[].columns gives other names"
)
REFUSED = {
    "not JSON at line 17": (
        lines(*[CHAT] * 16) + b"{'messages': []}\n",
        f"{NAME} line 17: not JSON (Expecting property name enclosed in double quotes at column "
        "2); every line must be one JSON object; fix or remove it",
    ),
    "invalid UTF-8": (
        lines(CHAT, CHAT).replace("ü".encode(), b"\xfc", 1),
        f"{NAME} line 1, message 1: byte 0xfc of 'content' is not UTF-8; save the file as UTF-8",
    ),
    "invalid UTF-8 later": (
        lines(CHAT) + lines(CHAT).replace("ü".encode(), b"\xfc"),
        f"{NAME} line 2, message 1: byte 0xfc of 'content' is not UTF-8; save the file as UTF-8",
    ),
    "another shape later": (
        lines(CHAT, PAIR),
        f"{NAME} line 2: no 'messages', only ['completion', 'prompt']; allowed: {SHAPES}",
    ),
    "chats after pairs": (
        lines(PAIR, CHAT),
        f"{NAME} line 2: no 'prompt', only ['messages']; allowed: {SHAPES}",
    ),
    "lacks messages": (
        lines({"conversation": []}),
        f"{NAME} line 1: an object with the keys ['conversation']; allowed: {SHAPES}",
    ),
    "a list as a row": (
        lines([1]),
        f"{NAME} line 1: a JSON list; every row must be an object: {SHAPES}",
    ),
    "messages is text": (
        lines({"messages": "hello"}),
        f"{NAME} line 1: 'messages' is text that is not valid JSON (Expecting value: line 1 "
        "column 1 (char 0)); fix or remove it",
    ),
    "messages is a number": (
        lines({"messages": 5}),
        f"{NAME} line 1: 'messages' is a number; it must be a list of messages",
    ),
    "no role": (
        lines({"messages": [{"content": "x"}]}),
        f"{NAME} line 1, message 1: not a message; it needs 'role' and 'content'",
    ),
    "wrong role": (
        lines(say("x", "human")),
        f"{NAME} line 1, message 1: role 'human'; allowed are system, user, assistant, tool",
    ),
    "upper-case role": (
        lines(say("x", "User")),
        f"{NAME} line 1, message 1: role 'User'; allowed are system, user, assistant, tool",
    ),
    "content is null": (
        lines(say(None)),
        f"{NAME} line 1, message 1: 'content' is a null; it must be text",
    ),
    "a tool call without a name": (
        lines({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}),
        f"{NAME} line 1, message 1: a tool call without a name; give "
        '{"name": ..., "arguments": ...}',
    ),
    "arguments that are not JSON": (
        lines(
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}],
                    }
                ]
            }
        ),
        f"{NAME} line 1, message 1: 'arguments' is text that is not valid JSON (Expecting "
        "property name enclosed in double quotes: line 1 column 2 (char 1)); fix or remove it",
    ),
    "train that is not a boolean": (
        lines({"messages": [{**CHAT["messages"][0], "train": "no"}]}),
        f"{NAME} line 1, message 1: 'train' is 'no'; allowed are true, false, 1 and 0",
    ),
    "a weight between 0 and 1": (
        lines({"messages": [{**CHAT["messages"][0], "weight": 0.5}]}),
        f"{NAME} line 1, message 1: 'weight' is 0.5; allowed are true, false, 1 and 0",
    ),
    "tools that are not objects": (
        lines({**CHAT, "tools": ["search"]}),
        f"{NAME} line 1: 'tools' is not a list of objects; give a list of JSON schemas",
    ),
    "functions": (
        lines({**CHAT, "functions": [{"name": "f"}]}),
        f"{NAME} line 1: 'functions' is not supported; use 'tools' and 'tool_calls', or remove the "
        "field, or the row",
    ),
    "a function call": (
        lines({"messages": [{**CHAT["messages"][0], "function_call": {"name": "f"}}]}),
        f"{NAME} line 1, message 1: 'function_call' is not supported; use 'tool_calls'",
    ),
    "an integer with too many digits": (
        lines(CHAT) + b'{"messages": ' + b"1" * 5000 + b"}",
        f"{NAME} line 2: 'messages' is a number of more than 4,300 digits; it must be a list of "
        "messages",
    ),
    "an image": (
        lines(say([{"type": "text", "text": "x"}, {"type": "image_url"}])),
        f"{NAME} line 1, message 1: a content part of type 'image_url'; only parts of type text "
        "work",
    ),
    "a part that is text itself": (
        lines(say(["x"])),
        f"{NAME} line 1, message 1: a content part of type 'string'; only parts of type text work",
    ),
    "a text part with null": (
        lines(say([{"type": "text", "text": None}])),
        f"{NAME} line 1, message 1: a text part whose text is a null; it must be text",
    ),
    "a text part without text": (
        lines(say([{"type": "text"}])),
        f"{NAME} line 1, message 1: a text part whose text is a null; it must be text",
    ),
    "completion is a number": (
        lines({"prompt": "x", "completion": 3}),
        f"{NAME} line 1: 'completion' is a number; it must be text",
    ),
    "half of a surrogate pair": (
        rb'{"prompt": "x", "completion": "\ud800"}',
        f"{NAME} line 1: the escape \\ud800 is half of a surrogate pair; write the complete "
        "pair, or remove it",
    ),
    "nested too deeply": (
        b"[" * 100_000,
        f"{NAME} line 1: not JSON (nested too deeply); every line must be one JSON object; fix "
        "or remove it",
    ),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_rows_name_file_line_and_remedy(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    error = refusal(tmp_path / "x.jsonl")
    assert (error.code, error.reason) == (ExitCode.BAD_DATA, "BadData")
    assert error.message == message


def test_a_row_of_another_format_than_the_named_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines(PAIR))
    assert refusal(tmp_path / "x.jsonl", "Messages").message == (
        f"{NAME} line 1: an object with the keys ['completion', 'prompt'] is PromptCompletion; "
        f"format is Messages; allowed: {SHAPES}"
    )


JSON_REFUSED = {
    "not JSON": (b'[\n{"a": 1}\n{"b": 2}]', "not JSON (Expecting ',' delimiter at line 3)"),
    "text after the list": (b'[{"a": 1}]\n[]', "not JSON (Extra data at line 2)"),
    "cut short": (b'[{"a": 1},\n{"b": 2', "not JSON (Expecting ',' delimiter at line 2)"),
    "a number with too many digits": (
        b"[" + b"1" * 5000 + b"]",
        "row 1: a JSON number of more than 4,300 digits; every row must be an object",
    ),
    "nested too deeply": (b"[" * 100_000, "not JSON (nested too deeply at line 1)"),
    "a text": (b'"messages"', "begins with '\"'; a .json file must be a list of objects"),
    "invalid UTF-8": (b'[\n{"text": "\xff"}]', " row 1: byte 0xff of 'text' is not UTF-8"),
}


@pytest.mark.parametrize(("data", "part"), JSON_REFUSED.values(), ids=JSON_REFUSED.keys())
def test_refused_json_files_name_the_line(tmp_path: Path, data: bytes, part: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    error = refusal(tmp_path / "x.json")
    assert error.code == ExitCode.BAD_DATA
    assert error.message.startswith(NAME)
    assert part in error.message


COLUMNAR = [{**CHAT, "tools": None}, {**CHAT, "tools": [{"name": "f", "strict": None}]}]


def write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=300)


def write_arrow_file(path: Path, rows: list[dict]) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


def write_arrow_stream(path: Path, rows: list[dict]) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["messages", "id"])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({"messages": json.dumps(row["messages"], indent=1), "id": number})


WRITERS = {
    "parquet": ("x.parquet", write_parquet),
    "arrow file": ("x.arrow", write_arrow_file),
    "arrow stream": ("x.arrow", write_arrow_stream),
    "csv": ("x.csv", write_csv),
}


@pytest.mark.parametrize(("file", "write"), WRITERS.values(), ids=WRITERS.keys())
def test_columnar_files_give_the_same_examples(tmp_path: Path, file: str, write: Callable) -> None:
    path = tmp_path / file
    write(path, [*COLUMNAR, *[CHAT] * 1500])
    examples = read(path)
    assert [example.messages for example in examples] == [CHAT["messages"]] * 1502
    if file != "x.csv":
        assert [example.tools for example in examples[:3]] == [None, [{"name": "f"}], None]
        assert examples[1501].where == f"{NAME} row 1502"


@pytest.mark.parametrize("file", ["x.parquet", "x.arrow"])
def test_damaged_columnar_files_are_bad_data(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    for data in (b"PAR1\x15" + b"x" * 40, b"ARROW1\0\0" + b"x" * 40):
        path.write_bytes(data)
        error = refusal(path)
        assert error.code == ExitCode.BAD_DATA
        assert error.message.startswith(f"{NAME}: cannot be read (")
        assert error.message.endswith("); copy the file again")
    write = write_parquet if file == "x.parquet" else write_arrow_file
    write(path, [CHAT] * 500)
    path.write_bytes(path.read_bytes()[:-300])
    assert refusal(path).code == ExitCode.BAD_DATA


CSV_REFUSED = {
    "too many fields": (b"prompt,completion\na,b,c\n", "line 2: 3 fields, the header has 2"),
    "an open quote": (
        b'prompt,completion\na,b\n"c,d\n',
        "line 3: not CSV (unexpected end of data)",
    ),
    "invalid UTF-8": (
        b"prompt,completion\na,\xff\n",
        "line 2: byte 0xff of 'completion' is not UTF-8",
    ),
    "other columns": (b"question;answer\na;b\n", "the keys ['question;answer']; allowed"),
}


@pytest.mark.parametrize(("data", "part"), CSV_REFUSED.values(), ids=CSV_REFUSED.keys())
def test_refused_csv_names_the_line(tmp_path: Path, data: bytes, part: str) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    error = refusal(tmp_path / "x.csv")
    assert error.code == ExitCode.BAD_DATA
    assert part in error.message


def test_line_numbers_of_csv_count_quoted_line_ends(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'prompt,completion\r\n"a\nb",c\r\n\r\nd,e\r\n')
    found = read(tmp_path / "x.csv")
    assert [(e.where, e.prompt, e.completion) for e in found] == [
        (f"{NAME} line 2", "a\nb", "c"),
        (f"{NAME} line 5", "d", "e"),
    ]


def test_a_row_of_a_json_file_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([CHAT, {"messages": 1}]))
    assert refusal(tmp_path / "x.json").message.startswith(f"{NAME} row 2: 'messages' is a number")


def damaged(data: bytes) -> bytes:
    """Return gzip data whose first block has an invalid type."""
    return data[:10] + b"\xff" + data[11:]


BROKEN_GZIP = {
    "cut short": gzip.compress(lines(*[CHAT] * 500))[:-20],
    "damaged": damaged(gzip.compress(lines(CHAT))),
}


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz"])
@pytest.mark.parametrize("data", BROKEN_GZIP.values(), ids=BROKEN_GZIP.keys())
def test_broken_gzip_is_bad_data(tmp_path: Path, data: bytes, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(data)
    error = refusal(tmp_path / f"x{suffix}")
    assert error.code == ExitCode.BAD_DATA
    assert error.message.endswith("; copy the file again")


def test_an_empty_file_has_no_examples(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"")
    assert read(tmp_path / "x.jsonl") == []


def test_other_file_types_are_refused(tmp_path: Path) -> None:
    for name, kind in (("x.txt", ".txt"), ("x.parquet.gz", ".parquet.gz"), ("x", "(none)")):
        (tmp_path / name).write_text("prompt,completion\n")
        assert refusal(tmp_path / name).message == (
            f"{NAME}: file type {kind}; allowed are .jsonl, .json and .csv, each optionally with "
            ".gz, .parquet and .arrow"
        )


def test_nulls_in_arguments_are_kept_except_in_structs_of_columnar_files(tmp_path: Path) -> None:
    def row(arguments: object) -> dict:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return {"messages": [CHAT["messages"][0], answer]}

    def arguments(path: Path) -> object:
        messages = read(path)[0].messages
        assert messages is not None
        return messages[1]["tool_calls"][0]["function"]["arguments"]

    kept, other = {"unit": None, "day": 1}, {"unit": "C", "day": 2}
    (tmp_path / "x.jsonl").write_bytes(lines(row(kept), row(other)))
    assert arguments(tmp_path / "x.jsonl") == kept
    write_parquet(tmp_path / "structs.parquet", [row(kept), row(other)])
    assert arguments(tmp_path / "structs.parquet") == {"day": 1}
    write_parquet(tmp_path / "texts.parquet", [row(json.dumps(kept)), row(json.dumps(other))])
    assert arguments(tmp_path / "texts.parquet") == kept
    texts = [{"messages": json.dumps(row(found)["messages"])} for found in (kept, other)]
    write_parquet(tmp_path / "columns.parquet", texts)
    assert arguments(tmp_path / "columns.parquet") == kept
    found = [
        columns_without_nulls(next(blocks(tmp_path / name, name, None)))
        for name in ("x.jsonl", "structs.parquet", "texts.parquet", "columns.parquet")
    ]
    assert found == [[], ["messages"], [], []]
