"""Files as people have them: each is read as it was meant, or refused by its own sentence."""

import bz2
import gzip
import json
import lzma
import pickle
import sqlite3
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.spec import DataSource
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data import read
from finetune_trainer.data.example import Example
from finetune_trainer.data.source_format import known_columns
from tests.trainer import reading

NAME = "pvc://w/x"
PAIR = {"prompt": "a", "completion": "b"}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
SHARED = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(table: Any, **options: Any) -> bytes:
    sink = BytesIO()
    found = table if isinstance(table, pyarrow.Table) else pyarrow.table(table)
    pyarrow.parquet.write_table(found, sink, **options)
    return sink.getvalue()


def arrow_file(table: Any) -> bytes:
    found, sink = pyarrow.table(table), BytesIO()
    with pyarrow.ipc.new_file(sink, found.schema) as writer:
        writer.write_table(found)
    return sink.getvalue()


def arrow_stream(table: Any) -> bytes:
    found, sink = pyarrow.table(table), BytesIO()
    with pyarrow.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found)
    return sink.getvalue()


def zipped(data: bytes) -> bytes:
    sink = BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("x.jsonl", data)
    return sink.getvalue()


def sqlite(folder: Path) -> bytes:
    with sqlite3.connect(folder / "db") as connection:
        connection.execute("create table t (text)")
    connection.close()
    return (folder / "db").read_bytes()


def found(path: Path, **source: Any) -> list[tuple[str, ...]]:
    return [texts_of(example) for example in reading.examples(path, NAME, **source)]


def texts_of(example: Example) -> tuple[str, ...]:
    """Return the texts of an example."""
    if example.messages is not None:
        return tuple(message["content"] for message in example.messages)
    return (example.prompt, example.completion) if example.text is None else (example.text,)


def refusal(path: Path, **source: Any) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        found(path, **source)
    return caught.value


COLUMNS = {"prompt": ["a"], "completion": ["b"]}
READ: dict[str, tuple[str, bytes]] = {
    "upper-case suffixes": ("x.JSONL.GZ", gzip.compress(lines(PAIR))),
    "gzip under another name": ("x.jsonl", gzip.compress(lines(PAIR))),
    "a gzip list under another name": ("x.json", gzip.compress(json.dumps([PAIR]).encode())),
    "two gzip members": ("x.jsonl.gz", gzip.compress(lines(PAIR)) + gzip.compress(b"\n")),
    "Parquet under another name": ("x.jsonl", parquet(COLUMNS)),
    "an Arrow file under another name": ("x.parquet", arrow_file(COLUMNS)),
    "an Arrow stream under another name": ("x.csv", arrow_stream(COLUMNS)),
    "one object a line in .json": ("x.json", lines(PAIR)),
    "one object a line in .json, byte order mark": ("x.json", b"\xef\xbb\xbf" + lines(PAIR)),
    "one object a line in .json.gz": ("x.json.gz", gzip.compress(b"\n" + lines(PAIR))),
    "a list in .jsonl": ("x.jsonl", json.dumps([PAIR], indent=1).encode()),
    "a list on one line in .jsonl": ("x.jsonl", json.dumps([PAIR]).encode() + b"\n"),
    "JSON Lines named .csv": ("x.csv", lines(PAIR)),
    "no line end": ("x.json", lines(PAIR)[:-1]),
}


@pytest.mark.parametrize(("file", "data"), READ.values(), ids=READ)
def test_read_by_contents(tmp_path: Path, file: str, data: bytes) -> None:
    (tmp_path / file).write_bytes(data)
    assert found(tmp_path / file) == [("a", "b")]


GZIPPED = gzip.compress(lines(PAIR))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "text named .gz": (
        "x.jsonl.gz",
        lines(PAIR),
        "the name ends in .gz, but the file is not compressed with gzip; rename it without .gz, or "
        "copy the file again",
    ),
    "text named .parquet": (
        "x.parquet",
        lines(PAIR),
        'not a Parquet file (it begins with \'{"prompt": "a"\'); copy the file again, or rename it',
    ),
    "text named .arrow": (
        "x.arrow",
        b"text\na\n",
        "not an Arrow file (it begins with 'text'); copy the file again, or rename it",
    ),
    "an empty Parquet file": ("x.parquet", b"", "empty (0 bytes); copy the file again"),
    "an empty Arrow file": ("x.arrow", b"", "empty (0 bytes); copy the file again"),
    "an empty gzip file": ("x.jsonl.gz", b"", "empty (0 bytes); copy the file again"),
    "gzip in gzip": (
        "x.jsonl.gz",
        gzip.compress(GZIPPED),
        "compressed with gzip twice; decompress it once",
    ),
    "Parquet in gzip": (
        "x.jsonl.gz",
        gzip.compress(parquet(COLUMNS)),
        "a Parquet file compressed with gzip; decompress it",
    ),
    "zstd": ("x.jsonl", b"\x28\xb5\x2f\xfd" + b"x" * 30, "compressed with zstd; decompress it"),
    "bzip2": ("x.jsonl", bz2.compress(lines(PAIR)), "compressed with bzip2; decompress it"),
    "xz": ("x.jsonl", lzma.compress(lines(PAIR)), "compressed with xz; decompress it"),
    "lz4": ("x.jsonl", b"\x04\x22\x4d\x18" + b"x" * 30, "compressed with lz4; decompress it"),
    "a zip archive": ("x.json", zipped(lines(PAIR)), "a zip archive; unpack it"),
    "a tar archive": (
        "x.jsonl",
        b"x.jsonl".ljust(257, b"\0") + b"ustar\0" + bytes(300),
        "a tar archive; unpack it",
    ),
    "a tar archive in gzip": (
        "x.jsonl.gz",
        gzip.compress(b"x.jsonl".ljust(257, b"\0") + b"ustar\0" + bytes(300)),
        "a tar archive; unpack it",
    ),
    "a pickle": ("x.jsonl", pickle.dumps([PAIR]), "a Python pickle; write it as .jsonl"),
    "a NumPy file": ("x.jsonl", b"\x93NUMPY\x01\x00", "a NumPy file; write it as .jsonl"),
    "ORC": ("x.parquet", b"ORC" + bytes(30), "an ORC file; write it as .parquet"),
    "Avro": ("x.parquet", b"Obj\x01" + bytes(30), "an Avro file; write it as .parquet"),
    "an old Feather file": (
        "x.arrow",
        b"FEA1" + bytes(30),
        "a Feather file of version 1; write it as .arrow or .parquet",
    ),
    "encrypted Parquet": (
        "x.parquet",
        b"PARE" + bytes(30),
        "an encrypted Parquet file; decrypt it",
    ),
    "a PDF": ("x.jsonl", b"%PDF-1.7\n", "a PDF document; write its text as .jsonl"),
    "a pointer of Git LFS": (
        "x.jsonl",
        LFS,
        "a pointer of Git LFS, not the file itself; fetch it with git lfs pull",
    ),
    "a pointer of Git LFS for Parquet": (
        "x.parquet",
        LFS,
        "a pointer of Git LFS, not the file itself; fetch it with git lfs pull",
    ),
    "a web page": (
        "x.jsonl",
        b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
        "a web page (HTML); download the file itself",
    ),
    "UTF-16, little-endian": (
        "x.csv",
        "prompt,completion\na,b\n".encode("utf-16"),
        "UTF-16 text; save it as UTF-8",
    ),
    "UTF-16, big-endian": (
        "x.jsonl",
        b"\xfe\xff" + lines(PAIR).decode().encode("utf-16-be"),
        "UTF-16 text; save it as UTF-8",
    ),
    "UTF-32": ("x.jsonl", lines(PAIR).decode().encode("utf-32"), "UTF-32 text; save it as UTF-8"),
    "UTF-16 without a mark": (
        "x.jsonl",
        lines(PAIR).decode().encode("utf-16-le"),
        "not UTF-8 text (it has NUL bytes, as UTF-16 has); save it as UTF-8",
    ),
    "an object over several lines": (
        "x.json",
        json.dumps(CHAT, indent=1).encode(),
        "line 1: a JSON object that goes on in the next line; write each object on one line, or "
        "the file as one list of objects",
    ),
    "lists of messages, one a line": (
        "x.jsonl",
        lines(CHAT["messages"], CHAT["messages"]),
        "line 1: a JSON list; every row must be an object",
    ),
    "two CSV columns of one name": (
        "x.csv",
        b"prompt,completion,prompt\na,b,c\n",
        "two columns have the name 'prompt'; rename or remove one",
    ),
    "two Parquet columns of one name": (
        "x.parquet",
        parquet(pyarrow.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "prompt"])),
        "two columns have the name 'prompt'; rename or remove one",
    ),
    "two Arrow columns of one name": (
        "x.arrow",
        arrow_stream(
            pyarrow.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "prompt"])
        ),
        "two columns have the name 'prompt'; rename or remove one",
    ),
    "one key twice in a row": (
        "x.jsonl",
        b'{"prompt": "a", "completion": "b", "prompt": "c"}\n',
        "line 1: 'prompt' is a key that occurs twice; it must be text",
    ),
    "a semicolon as separator": (
        "x.csv",
        b"prompt;completion\na;b\n",
        "line 2: an object with the keys ['prompt;completion']",
    ),
    "a Python list as text": (
        "x.csv",
        b"conversations\n\"[{'from': 'human', 'value': 'a'}]\"\n",
        "line 2: 'conversations' is text that is not valid JSON",
    ),
}


@pytest.mark.parametrize(("file", "data", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_by_its_own_sentence(tmp_path: Path, file: str, data: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(data)
    error = refusal(tmp_path / file)
    assert error.code == ExitCode.BAD_DATA
    assert error.message.startswith(NAME)
    assert message in error.message


def test_a_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(sqlite(tmp_path))
    assert refusal(tmp_path / "x.jsonl").message == (
        f"{NAME}: an SQLite database; write it as .jsonl"
    )


def array(values: list[Any], kind: Any) -> Any:
    return pyarrow.array(values, kind)


INTEGERS = array([10**15] * 3, pyarrow.int64())
ODD: dict[str, Any] = {
    "dates beyond 9999": array([10**7] * 3, pyarrow.date32()),
    "times beyond 9999": INTEGERS.cast(pyarrow.timestamp("s")),
    "times before year 1": array([-(10**15)] * 3, pyarrow.int64()).cast(pyarrow.timestamp("s")),
    "an unknown zone": array([1] * 3, pyarrow.timestamp("us", "Mars/Olympus")),
    "an odd offset": array([1] * 3, pyarrow.timestamp("us", "+25:99")),
    "durations": INTEGERS.cast(pyarrow.duration("s")),
    "nanoseconds": array([1] * 3, pyarrow.time64("ns")),
    "months": array([(1, 2, 3)] * 3, pyarrow.month_day_nano_interval()),
    "decimals": array([1] * 3, pyarrow.decimal256(70, 3)),
    "bytes that are not UTF-8": array([b"\xff"] * 3, pyarrow.binary()),
    "bytes of one size": array([b"\xff\xfe"] * 3, pyarrow.binary(2)),
    "text that is not UTF-8": array([b"\xff"] * 3, pyarrow.binary()).view(pyarrow.string()),
    "an extension": pyarrow.ExtensionArray.from_storage(
        pyarrow.uuid(), array([b"\xff" * 16] * 3, pyarrow.binary(16))
    ),
    "fields of one name": pyarrow.StructArray.from_arrays(
        [array([1] * 3, pyarrow.int64())] * 2, names=["a", "a"]
    ),
    "a map with a key twice": array(
        [[("a", 1), ("a", 2)]] * 3, pyarrow.map_(pyarrow.string(), pyarrow.int64())
    ),
}
TEXTS = {"prompt": ["a"] * 3, "completion": ["b"] * 3}
WRITERS: dict[str, tuple[str, Callable[[Any], bytes]]] = {
    "parquet": ("x.parquet", parquet),
    "arrow": ("x.arrow", arrow_stream),
}
# Parquet has no such type.
ONLY_ARROW = ("months",)
CASES = [(file, odd) for file in WRITERS for odd in ODD if file == "arrow" or odd not in ONLY_ARROW]


@pytest.mark.parametrize(("writer", "odd"), CASES)
def test_odd_values_in_a_column_without_a_meaning_are_not_converted(
    tmp_path: Path, writer: str, odd: str
) -> None:
    file, write = WRITERS[writer]
    (tmp_path / file).write_bytes(write({**TEXTS, "extra": ODD[odd]}))
    assert found(tmp_path / file) == [("a", "b")] * 3


@pytest.mark.parametrize(("writer", "odd"), CASES)
def test_odd_values_in_a_used_column_are_named(tmp_path: Path, writer: str, odd: str) -> None:
    file, write = WRITERS[writer]
    (tmp_path / file).write_bytes(write({"prompt": TEXTS["prompt"], "completion": ODD[odd]}))
    error = refusal(tmp_path / file)
    assert error.code == ExitCode.BAD_DATA
    assert error.message.startswith(f"{NAME} row 1: 'completion' is a ")
    assert error.message.endswith("; it must be text")


@pytest.mark.parametrize(("writer", "odd"), CASES)
def test_odd_values_beside_the_text_of_a_message(tmp_path: Path, writer: str, odd: str) -> None:
    file, write = WRITERS[writer]
    extra = ODD[odd]
    messages = pyarrow.StructArray.from_arrays(
        [array(["user", "assistant", "user"], pyarrow.string()),
         array(["a", "b", "c"], pyarrow.string()), extra],
        names=["role", "content", "extra"],
    )  # fmt: skip
    column = pyarrow.ListArray.from_arrays(array([0, 2, 3], pyarrow.int32()), messages)
    (tmp_path / file).write_bytes(write({"messages": column}))
    assert found(tmp_path / file) == [("a", "b"), ("c",)]


def test_the_row_group_of_an_odd_value_is_named(tmp_path: Path) -> None:
    values = array([b"a"] * 5 + [b"\xff"], pyarrow.binary())
    (tmp_path / "x.parquet").write_bytes(parquet({"text": values}, row_group_size=2))
    assert refusal(tmp_path / "x.parquet").message == (
        f"{NAME} row 6: 'text' is a binary value that is not UTF-8 (row group 3); it must be text"
    )


STRINGS = array(["a", "b"], pyarrow.string())
TEXT_TYPES = {
    "binary": STRINGS.cast(pyarrow.binary()),
    "large binary": STRINGS.cast(pyarrow.large_binary()),
    "binary view": STRINGS.cast(pyarrow.binary_view()),
    "bytes of one size": STRINGS.cast(pyarrow.binary()).cast(pyarrow.binary(1)),
    "large string": STRINGS.cast(pyarrow.large_string()),
    "string view": STRINGS.cast(pyarrow.string_view()),
    "dictionary": STRINGS.dictionary_encode(),
    "dictionary of binary": STRINGS.cast(pyarrow.binary()).dictionary_encode(),
    "JSON": pyarrow.ExtensionArray.from_storage(pyarrow.json_(), STRINGS),
}


@pytest.mark.parametrize("kind", TEXT_TYPES)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_type_that_holds_text_is_text(tmp_path: Path, writer: str, kind: str) -> None:
    file, write = WRITERS[writer]
    (tmp_path / file).write_bytes(write({"text": TEXT_TYPES[kind]}))
    assert found(tmp_path / file) == [("a",), ("b",)]


def test_messages_of_binary_text_or_maps_are_read(tmp_path: Path) -> None:
    turn = pyarrow.struct([("role", pyarrow.binary()), ("content", pyarrow.binary())])
    rows = [[{"role": m["role"].encode(), "content": m["content"].encode()}
             for m in CHAT["messages"]]]  # fmt: skip
    maps = [[list(message.items()) for message in CHAT["messages"]]]
    kinds = {
        "list": array(rows, pyarrow.list_(turn)),
        "large": array(rows, pyarrow.large_list(turn)),
        "maps": array(maps, pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))),
    }
    for kind, column in kinds.items():
        (tmp_path / f"{kind}.parquet").write_bytes(parquet({"messages": column}))
        assert found(tmp_path / f"{kind}.parquet") == [("a", "b")]


UNUSED: dict[str, tuple[str, bytes]] = {
    "a number of 5,000 digits": ("x.jsonl", b'{"text": "a", "id": ' + b"1" * 5000 + b"}"),
    "a number of 5,000 digits in a list": (
        "x.json",
        b'[{"text": "a", "id": ' + b"1" * 5000 + b"}]",
    ),
    "bytes that are not UTF-8": ("x.jsonl", b'{"text": "a", "name": "M\xfcller"}'),
    "bytes that are not UTF-8 in a list": ("x.json", b'[{"text": "a", "name": "M\xfcller"}]'),
    "bytes that are not UTF-8 in CSV": ("x.csv", b"text,name\na,M\xfcller\n"),
    "half of a surrogate pair": ("x.jsonl", b'{"text": "a", "name": "\\ud83d"}'),
    "one key twice": ("x.jsonl", b'{"text": "a", "meta": {"id": 1, "id": 2}}'),
    "CSV columns without a name": ("x.csv", b",text,,\n1,a,,\n"),
    "not a number": ("x.jsonl", b'{"text": "a", "score": NaN}'),
}


@pytest.mark.parametrize(("file", "data"), UNUSED.values(), ids=UNUSED)
def test_what_a_column_without_a_meaning_holds_does_not_matter(
    tmp_path: Path, file: str, data: bytes
) -> None:
    (tmp_path / file).write_bytes(data)
    assert found(tmp_path / file) == [("a",)]


USED: dict[str, tuple[str, bytes, str]] = {
    "a number of 5,000 digits": (
        "x.jsonl",
        b'{"text": ' + b"1" * 5000 + b"}",
        "line 1: 'text' is a number of more than 4,300 digits; it must be text",
    ),
    "bytes that are not UTF-8 in a list": (
        "x.json",
        b'[{"text": "M\xfcller"}]',
        "row 1: byte 0xfc of 'text' is not UTF-8; save the file as UTF-8",
    ),
    "bytes that are not UTF-8 in CSV": (
        "x.csv",
        b"text\nM\xfcller\n",
        "line 2: byte 0xfc of 'text' is not UTF-8; save the file as UTF-8",
    ),
    "one key twice in tools": (
        "x.jsonl",
        b'{"tools": [{"name": "f", "name": "g"}], "messages": '
        b'[{"role": "assistant", "content": "b"}]}',
        "line 1: 'tools' holds a key that occurs twice; remove it",
    ),
    "half of a surrogate pair in arguments": (
        "x.jsonl",
        b'{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": '
        b'{"a": "\\ud83d"}}]}]}',
        "line 1, message 1: the escape \\ud83d is half of a surrogate pair",
    ),
}


@pytest.mark.parametrize(("file", "data", "message"), USED.values(), ids=USED)
def test_what_a_used_column_holds_is_named(
    tmp_path: Path, file: str, data: bytes, message: str
) -> None:
    (tmp_path / file).write_bytes(data)
    assert message in refusal(tmp_path / file).message


def test_columns_without_a_meaning_are_not_read(tmp_path: Path) -> None:
    """A picture in a column of its own costs no memory and no time."""
    pictures = array([b"\xff" * 200_000] * 3, pyarrow.binary())
    for file, (name, write) in WRITERS.items():
        path = tmp_path / name
        path.write_bytes(write({**TEXTS, "picture": pictures}))
        blocks = list(read.blocks(path, NAME, known_columns(DataSource(source=NAME))))
        assert sum(len(block.data.stream) for block in blocks) < 5000, file
        (_, row), *_ = read.rows(blocks[0])
        assert row.keys() == {"prompt", "completion", "picture"}


def test_very_long_rows_of_a_columnar_file_are_sent_one_by_one(tmp_path: Path) -> None:
    texts = ["x" * 2_000_000] * 4 + ["y"] * 1000
    for name, write in WRITERS.values():
        (tmp_path / name).write_bytes(write({"text": texts}))
        sizes = [len(block.data.stream) for block in read.blocks(tmp_path / name, NAME)]
        assert max(sizes) < 2_100_000
        assert len(sizes) < 20
        assert [text for (text,) in found(tmp_path / name)] == texts


def test_a_row_above_the_largest_size_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("text_files", "columnar_files", "json_list"):
        monkeypatch.setattr(f"finetune_trainer.data.{module}.MAX_ROW", 1 << 20)
    rows = [{"text": "a"}, {"text": "x" * 3_000_000}]
    files = {
        "x.jsonl": (lines(*rows), "line 2: more than 1 MiB"),
        "x.json": (json.dumps(rows).encode(), "a value of more than 1 MiB begins at line 1"),
        "x.csv": (b"text\na\n" + b"x" * 3_000_000, "line 3: more than 1 MiB"),
        "x.parquet": (parquet({"text": ["a", "x" * 3_000_000]}), "row 2: more than 1 MiB"),
        "x.arrow": (arrow_file({"text": ["a", "x" * 3_000_000]}), "row 2: more than 1 MiB"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        assert message in refusal(tmp_path / name).message
