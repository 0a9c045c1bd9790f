"""Checks that every token id has a row in the embedding.

An id without a row would end training on a device. The check runs before devices are assigned, and
again before a model is published.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError

_EMBEDDING = "model.embed_tokens.weight"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def check(folder: Path, name: str, shapes: dict[str, list[int]]) -> None:
    """Raise TrainerError (64) for a token id without a row. `shapes`: parameter -> shape."""
    rows = shapes[_EMBEDDING][0]
    for file, what, token in _ids(folder):
        if token >= rows:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{name}: {file} has the id {token} ({what}), but the model's embedding has {rows} "
                f"rows (0 to {rows - 1}); copy tokenizer and weights of the same model, or resize "
                "the embedding",
            )


def _ids(folder: Path) -> Iterator[tuple[str, str, int]]:
    for file in ("config.json", "generation_config.json"):
        values = _read(folder / file)
        for key in _SPECIAL:
            for token in as_list(values.get(key)):
                yield file, key, token
    tokenizer = _read(folder / "tokenizer.json")
    for entry in tokenizer.get("added_tokens") or []:
        yield "tokenizer.json", repr(entry["content"]), entry["id"]
    tokens = (tokenizer.get("model") or {}).get("vocab")
    if isinstance(tokens, dict) and tokens:
        largest = max(tokens, key=tokens.__getitem__)
        yield "tokenizer.json", repr(largest), tokens[largest]
    elif tokens:  # Unigram: a list, in which the position is the id
        yield "tokenizer.json", repr(tokens[-1][0]), len(tokens) - 1


def _read(file: Path) -> dict[str, Any]:
    """Return a JSON object, empty if the file is absent or not valid.

    Other checks report such a file with a better message.
    """
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def as_list(value: Any) -> list[int]:
    """Return the token ids of a field of config.json: none, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
