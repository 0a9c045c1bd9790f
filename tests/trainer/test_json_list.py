"""Splitting a JSON list into its elements."""

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data import json_list

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@given(
    st.lists(JSON, max_size=6),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_elements_do_not_depend_on_the_size_of_chunks(
    values: list[Any], size: int, indent: int | None, escaped: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    blocks = json_list._BLOCK
    json_list._BLOCK = 1  # read one chunk at a time
    try:
        found = [json.loads(text) for text in json_list.elements(cut(data, size), "x")]
    finally:
        json_list._BLOCK = blocks
    assert found == values


VALUES = {
    "numbers": (
        b"[-0, -0.0, 0.1, 1e5, 12345678901234567890123]",
        [0, -0.0, 0.1, 1e5, 12345678901234567890123],
    ),
    "numbers that are not finite": (b"[Infinity, -Infinity]", [float("inf"), float("-inf")]),
    "duplicate keys": (b'[{"a": 1, "a": 2}]', [{"a": 2}]),
    "half of a surrogate pair": (rb'["\ud800"]', ["\ud800"]),
    "a surrogate pair": (rb'["\ud83d\ude00"]', ["\U0001f600"]),
}


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(("data", "values"), VALUES.values(), ids=VALUES.keys())
def test_values_are_those_of_the_standard_library(
    data: bytes, values: list[Any], size: int
) -> None:
    found = [json.loads(text) for text in json_list.elements(cut(data, size), "x")]
    assert repr(found) == repr(values)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list() -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "x" * 1000}]}).encode()

    def chunks(rows: int) -> Iterator[bytes]:
        yield b"["
        for number in range(rows):
            yield (b"," if number else b"") + row * 1
        yield b"]"

    def peak(rows: int) -> int:
        tracemalloc.start()
        count = sum(1 for _ in json_list.elements(chunks(rows), "x"))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == rows
        return most

    assert peak(20_000) < 1.2 * peak(4_000)
