"""Prepares the work of Hugging Face Trainer: `python -m benchmarks.gpu.peer SETTINGS`.

It writes the model with random weights and a tokenizer, and the rows as the trainer's own, in the
format of benchmarks/trainers/hf_trainer.py, which each rank then runs.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.shapes import SHAPES, Shape, make_model_on

from finetune_trainer.data.prepared import Rows


def main() -> None:
    settings = json.loads(sys.argv[1])
    shape, folder = SHAPES[settings["shape"]], Path(settings["folder"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_model_on(shape, device, "sdpa").save_pretrained(folder / "model")
    make_tokenizer(shape, folder / "model")
    rows = Rows(Path(settings["rows"]), "train")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(len(rows)):
            file.write(json.dumps(example(rows[number])) + "\n")


def example(row: Any) -> dict[str, list[int]]:
    """Return a row in the format of Trainer, where -100 means untrained."""
    labels = np.where(row.trained, row.tokens.astype(np.int64), -100)
    return {"input_ids": row.tokens.tolist(), "labels": labels.tolist()}


def make_tokenizer(shape: Shape, folder: Path) -> None:
    """Write a tokenizer, which the collator needs for its padding token only."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    entries = {str(number): number for number in range(shape.vocabulary)}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(entries, unk_token="0")),
        bos_token="0",
        eos_token="1",
        pad_token="1",
    )
    made.save_pretrained(folder)


if __name__ == "__main__":
    main()
