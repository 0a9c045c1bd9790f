"""Reads and renders examples the way preparation does."""

from pathlib import Path
from typing import Any

from finetune_api.spec import DataSource
from finetune_trainer.data import read
from finetune_trainer.data.example import Example, UnfitRowError
from finetune_trainer.data.render import Document, Dropped, Renderer
from finetune_trainer.data.source_format import known_columns, shape_of


def examples(path: Path, name: str, *, chat: bool = True, **source: Any) -> list[Example]:
    """Return every example of a file; `source` are fields of the source besides its address."""
    wanted = DataSource.model_validate({"source": "pvc://w/x", **source})
    blocks = read.blocks(path, name, known_columns(wanted))
    found = [row for block in blocks for row in read.rows(block)]
    shape = shape_of(found[:1000], wanted, chat=chat) if found else None
    return [shape.example(row) for row in found] if shape else []


def rendered(renderer: Renderer, example: Example) -> Document | Dropped:
    """Return the document of one example; UnfitRowError if it cannot be rendered."""
    (found,) = renderer.render([example])
    if isinstance(found, UnfitRowError):
        raise found
    return found
