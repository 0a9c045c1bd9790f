"""Digests that identify files, prepared data and runs by their contents."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

_CHUNK = 1 << 22  # bytes
PREPARATION_VERSION = 3
"""Increased by every change that makes other rows from the same input."""


def of_file(path: Path, advance: Callable[[], None] | None = None) -> str:
    """Return the xxh3-128 of a file's contents in hex. Calls `advance` after every 4 MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if advance:
                advance()
    return digest.hexdigest()


def of_value(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
