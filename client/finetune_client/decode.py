"""Decoding of JSON from the API server, lists item by item.

Python objects take ten times as much memory as their JSON, and a page of a list can contain many
objects of 1.5 MB. Each item is therefore converted to what the caller keeps before the next one is
decoded.
"""

import json
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

from finetune_api.base import Object
from finetune_client.errors import InvalidResponseError

_SMALL = 1024 * 1024  # bytes that are decoded at once, which takes half the time
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"

Convert = Callable[[Object], Any]
"""Returns what to keep of an item."""


def decode(text: bytes) -> Object:
    """Return the object that JSON describes; InvalidResponseError if it is not JSON."""
    try:
        parsed: Object = from_json(text)
    except ValueError:
        try:
            parsed = json.loads(text)  # pydantic_core refuses more than 200 levels.
        except (ValueError, RecursionError):
            raise InvalidResponseError("the response is not JSON") from None
    return parsed


def decode_list(text: bytes, convert: Convert) -> Object:
    """Return a list with its items converted, or any other object as it is."""
    if len(text) > _SMALL:
        try:
            return _decode_fields(text.decode(), convert)
        except (ValueError, IndexError, RecursionError):
            raise InvalidResponseError("the response is not JSON") from None
    parsed = decode(text)
    if isinstance(parsed, dict) and isinstance(parsed.get("items"), list):
        parsed["items"] = [convert(item) for item in parsed["items"]]
    return parsed


def _decode_fields(text: str, convert: Convert) -> Object:
    """Decode the fields of an object one after the other."""
    fields: Object = {}
    position = _after(text, 0, "{")
    while text[position] != "}":
        name, position = _DECODER.raw_decode(text, position)
        position = _after(text, position, ":")
        if name == "items" and text[position] == "[":
            fields[name], position = _decode_items(text, position, convert)
        else:
            fields[name], position = _DECODER.raw_decode(text, position)
        position = _skip_comma(text, position)
    return fields


def _decode_items(text: str, position: int, convert: Convert) -> tuple[list[Any], int]:
    items = []
    position = _after(text, position, "[")
    while text[position] != "]":
        item, position = _DECODER.raw_decode(text, position)
        items.append(convert(item))
        position = _skip_comma(text, position)
    return items, position + 1


def _after(text: str, position: int, character: str) -> int:
    """Return the position of the next token after this character, which must come next."""
    position = _skip_space(text, position)
    if text[position : position + 1] != character:
        raise ValueError(f"no {character} at {position}")
    return _skip_space(text, position + 1)


def _skip_comma(text: str, position: int) -> int:
    position = _skip_space(text, position)
    return _after(text, position, ",") if text[position : position + 1] == "," else position


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in _SPACE and position < len(text):
        position += 1
    return position
