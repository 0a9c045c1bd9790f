"""Decodes JSON as it is written: what Python would drop or cannot hold is marked, not lost."""

import json
from dataclasses import dataclass
from typing import Any

_LONGEST_INTEGER = 4300  # digits; int() refuses more


@dataclass(frozen=True)
class Unreadable:
    """A value that no example can hold. It is refused where it is used, and only there."""

    what: str  # a noun without an article


TWICE = Unreadable("key that occurs twice")
"""The value of a key that occurs twice in an object: it is not known which value was meant."""


def decode(text: str) -> Any:
    """Return the value of a JSON text; ValueError or RecursionError if it is not JSON."""
    try:
        return _decoder.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # int() refuses the number of digits
        return _slow_decoder.decode(text)


def from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, given its keys and values."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        found |= {key: TWICE for key in keys if keys.count(key) > 1}
    return found


def _integer(text: str) -> Any:
    if len(text) > _LONGEST_INTEGER:
        return Unreadable("number of more than 4,300 digits")
    return int(text)


_decoder = json.JSONDecoder(object_pairs_hook=from_pairs)
_slow_decoder = json.JSONDecoder(object_pairs_hook=from_pairs, parse_int=_integer)
