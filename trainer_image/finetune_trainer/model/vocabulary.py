"""Token ids and the rows of the embedding must fit: an id without a row ends training on a device.

Found before a device is held, and again before a model is published.
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
    """TrainerError 64 names the id that has no row. `shapes`: parameter -> shape."""
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
    words = (tokenizer.get("model") or {}).get("vocab")
    if isinstance(words, dict) and words:
        word = max(words, key=words.__getitem__)
        yield "tokenizer.json", repr(word), words[word]
    elif words:  # Unigram: a list, the position is the id
        yield "tokenizer.json", repr(words[-1][0]), len(words) - 1


def _read(file: Path) -> dict[str, Any]:
    """Empty when it is absent or no JSON object: whoever needs it says so in better words."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def as_list(value: Any) -> list[int]:
    """Token ids as config.json and generation_config.json give them: one, several or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
