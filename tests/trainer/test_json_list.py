"""A JSON list of any size, element by element."""

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
def test_every_element_comes_whole_wherever_the_file_is_cut(
    values: list[Any], size: int, indent: int | None, escaped: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    blocks = json_list._BLOCK
    json_list._BLOCK = 1  # look no further than one chunk at a time
    try:
        found = [json.loads(text) for text in json_list.elements(cut(data, size), "x")]
    finally:
        json_list._BLOCK = blocks
    assert found == values


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
