"""A block: some consecutive rows of one file, as they are sent to the process that parses them."""

from dataclasses import dataclass
from typing import Any, Literal

BLOCK_BYTES = 1 << 20  # input per block, approximately
MAX_ROW = 32 << 20  # bytes; a longer row often means that a quote or a line end is missing
Row = tuple[str, Any]
"""The place of a row, for messages, and its value."""


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of one file, not parsed yet.

    `data` depends on `kind`. lines: JSON Lines as bytes. texts: a list of JSON values as text.
    cells: the header and a list of (line number, values). batch: `columnar_files.Batch`. `first` is
    the line or row number of the first row, from 1. `done` is the number of bytes of the file that
    were read up to here.
    """

    name: str
    kind: Literal["lines", "texts", "cells", "batch"]
    first: int
    data: Any
    done: int

    @property
    def bytes(self) -> int:
        """The size of the data, approximately."""
        if self.kind == "lines":
            return len(self.data)
        if self.kind == "texts":
            return sum(map(len, self.data))
        if self.kind == "cells":
            return sum(len(text) for _, values in self.data[1] for text in values)
        return len(self.data.stream)

    @property
    def place(self) -> str:
        """The place of a row without its number: "<file> line" or "<file> row"."""
        return f"{self.name} {'line' if self.kind in ('lines', 'cells') else 'row'}"
