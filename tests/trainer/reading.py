"""Reading one file of examples the way preparation does."""

from pathlib import Path
from typing import Any

from finetune_api.spec import DataSource
from finetune_trainer.data import read
from finetune_trainer.data.shapes import Example, shape_of


def examples(path: Path, name: str, *, chat: bool = True, **source: Any) -> list[Example]:
    """Every example of a file; keys of the source beside its address."""
    wanted = DataSource.model_validate({"source": "pvc://w/x", **source})
    found = [row for block in read.blocks(path, name) for row in read.rows(block)]
    shape = shape_of(found[0], wanted, chat=chat) if found else None
    return [shape.example(row) for row in found] if shape else []
