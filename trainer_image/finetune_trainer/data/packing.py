"""Packs documents into rows without cutting them: first fit over a bounded number of open rows."""

from collections.abc import Iterable, Iterator

import numpy as np

from finetune_trainer.data.render import Document
from finetune_trainer.data.rows import Row

_OPEN_ROWS = 256  # bounds memory; with conversations, more open rows do not pack better


def pack(documents: Iterable[Document], length: int, *, packing: bool) -> Iterator[Row]:
    """Yield rows of at most `length` tokens; every document is in exactly one of them, uncut.

    The same documents in the same order give the same rows. No document may be longer than
    `length`. Without `packing`, every document is a row.
    """
    if not packing:
        for document in documents:
            yield _row([document])
        return
    open_rows: list[list[Document]] = []
    room = np.full(_OPEN_ROWS, -1, dtype=np.int64)  # tokens left, -1 where no row is open
    for document in documents:
        size = len(document.tokens)
        fits = room >= size
        place = int(fits.argmax())
        if fits[place]:
            open_rows[place].append(document)
            room[place] -= size
            continue
        if len(open_rows) == _OPEN_ROWS:
            fullest = int(room.argmin())
            yield _row(open_rows.pop(fullest))
            room[fullest:-1] = room[fullest + 1 :]
        open_rows.append([document])
        room[len(open_rows) - 1] = length - size
    for documents_of_row in open_rows:
        yield _row(documents_of_row)


def _row(documents: list[Document]) -> Row:
    return Row(
        tokens=np.concatenate([d.tokens for d in documents]),
        trained=np.concatenate([d.trained for d in documents]),
        segments=np.asarray([len(d.tokens) for d in documents], dtype=np.uint32),
    )
