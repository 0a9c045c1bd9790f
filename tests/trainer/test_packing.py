"""Packing: every document once and uncut, in rows that fit; and rows on disk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data import packing
from finetune_trainer.data.prepared import Row, Rows, RowWriter
from finetune_trainer.data.render import Document

LENGTH = 32
LENGTHS = st.lists(st.integers(1, LENGTH), max_size=400)


def documents(lengths: list[int]) -> Iterator[Document]:
    """Yield documents; document n consists of the token n."""
    for number, size in enumerate(lengths):
        trained = np.arange(size, dtype=np.uint8) % 2
        yield Document(np.full(size, number, dtype=np.uint32), trained)


def pack(lengths: list[int], *, packed: bool = True) -> list[Row]:
    return list(packing.pack(documents(lengths), LENGTH, packing=packed))


def contents(rows: list[Row]) -> dict[int, int]:
    """Return document -> length, as in the segments; every document must come once only."""
    found: dict[int, int] = {}
    for row in rows:
        parts = np.split(row.tokens, np.cumsum(row.segments)[:-1])
        for part in parts:
            (number,) = set(part.tolist())
            assert number not in found
            found[number] = len(part)
    return found


@given(LENGTHS)
def test_every_document_is_in_one_row_uncut(lengths: list[int]) -> None:
    assert contents(pack(lengths)) == dict(enumerate(lengths))


@given(LENGTHS)
def test_no_row_is_longer_than_allowed(lengths: list[int]) -> None:
    assert all(len(row.tokens) <= LENGTH for row in pack(lengths))


@given(LENGTHS)
def test_masks_stay_with_their_documents(lengths: list[int]) -> None:
    for row in pack(lengths):
        expected = np.concatenate([np.arange(size) % 2 for size in row.segments])
        assert row.trained.tolist() == expected.tolist()


@given(LENGTHS)
def test_the_same_documents_give_the_same_rows(lengths: list[int]) -> None:
    first, second = pack(lengths), pack(lengths)
    assert [row.tokens.tolist() for row in first] == [row.tokens.tolist() for row in second]


@given(LENGTHS)
def test_without_packing_every_row_is_one_document(lengths: list[int]) -> None:
    rows = pack(lengths, packed=False)
    assert [row.segments.tolist() for row in rows] == [[size] for size in lengths]


def test_more_than_98_percent_of_a_row_is_filled() -> None:
    lengths = np.random.default_rng(1).integers(1, LENGTH // 2, 2000).tolist()
    rows = pack(lengths)
    assert sum(lengths) / (len(rows) * LENGTH) > 0.98


def test_written_rows_are_read_back_unchanged(tmp_path: Path) -> None:
    rows = pack([5, 30, 7, 32, 1, 9])
    with RowWriter(tmp_path, "train") as writer:
        for row in rows:
            writer.add(row)
    found = Rows(tmp_path, "train")
    assert len(found) == len(rows)
    for number, row in enumerate(rows):
        assert found[number].tokens.tolist() == row.tokens.tolist()
        assert found[number].trained.tolist() == row.trained.tolist()
        assert found[number].segments.tolist() == row.segments.tolist()
        assert found.trained_tokens[number] == row.trained.sum()


def test_a_split_without_rows_is_empty(tmp_path: Path) -> None:
    with RowWriter(tmp_path, "validation"):
        pass
    assert len(Rows(tmp_path, "validation")) == 0
