"""Filling rows with whole documents: first fit over a bounded number of open rows."""

from collections.abc import Iterable, Iterator

import numpy as np

from finetune_trainer.data.render import Document
from finetune_trainer.data.rows import Row

_OPEN_ROWS = 256  # bounds memory; with chats, efficiency no longer grows beyond


def pack(documents: Iterable[Document], length: int, *, packing: bool) -> Iterator[Row]:
    """Rows of at most `length` tokens; every document is in exactly one of them, whole.

    Deterministic: the same documents in the same order give the same rows. A document longer than
    `length` is the caller's error.
    """
    if not packing:
        for document in documents:
            yield _row([document])
        return
    open_rows: list[list[Document]] = []
    room: list[int] = []
    for document in documents:
        size = len(document.tokens)
        place = next((i for i, free in enumerate(room) if free >= size), None)
        if place is None:
            if len(open_rows) == _OPEN_ROWS:
                fullest = min(range(len(room)), key=room.__getitem__)
                yield _row(open_rows.pop(fullest))
                room.pop(fullest)
            open_rows.append([document])
            room.append(length - size)
        else:
            open_rows[place].append(document)
            room[place] -= size
    for documents_of_row in open_rows:
        yield _row(documents_of_row)


def _row(documents: list[Document]) -> Row:
    return Row(
        tokens=np.concatenate([d.tokens for d in documents]),
        trained=np.concatenate([d.trained for d in documents]),
        segments=np.asarray([len(d.tokens) for d in documents], dtype=np.uint32),
    )
