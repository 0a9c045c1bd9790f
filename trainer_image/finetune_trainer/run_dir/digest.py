"""Digests: what prepared data and a run depend on, and on nothing else."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

_CHUNK = 1 << 22
# Raised whenever this package would make other rows of the same input.
PREPARATION_VERSION = 3


def of_file(path: Path, advance: Callable[[], None] | None = None) -> str:
    """xxh3-128 of a file's contents, hex; `advance` is called for every 4 MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if advance:
                advance()
    return digest.hexdigest()


def of_value(value: Any) -> str:
    """sha256 of canonical JSON, hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
