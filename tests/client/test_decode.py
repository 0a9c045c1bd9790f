"""Lists are decoded item by item, whatever the order of their fields."""

import json
import tracemalloc

import pytest

from finetune_client import decode as module
from finetune_client.decode import decode_list
from finetune_client.errors import InvalidResponseError

ITEMS = [
    {"metadata": {"name": f"a{n}"}, "spec": {"text": 'x"}],{"items": ["', "n": [1, {}]}}
    for n in range(3)
]
LISTS = {
    "items first": {"apiVersion": "v1", "items": ITEMS, "kind": "L", "metadata": {"continue": "c"}},
    "items last": {"kind": "L", "metadata": {"resourceVersion": "5"}, "items": ITEMS},
    "no items": {"kind": "L", "metadata": {}, "items": []},
    "null": {"items": None, "metadata": {}},
    "not a list": {"kind": "Status", "code": 404},
    "empty": {},
}


@pytest.mark.parametrize("small", [0, 1 << 20], ids=["item by item", "at once"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", LISTS)
def test_the_items_of_a_list_are_converted(name, indent, small, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", small)
    given = LISTS[name]
    text = json.dumps(given, indent=indent).encode()
    found = decode_list(text, lambda item: item["metadata"]["name"])
    items = given.get("items")
    expected = {"items": [item["metadata"]["name"] for item in items]} if items is not None else {}
    assert found == given | expected


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"items": [{}', b'{"items": [{}]', b"[1]", b'{"a" 1}', b"\xff"]
)
def test_a_text_that_is_not_an_object_is_refused(text, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", -1)
    with pytest.raises(InvalidResponseError):
        decode_list(text, dict)


@pytest.mark.slow
def test_a_page_of_large_items_needs_little_more_than_its_text():
    item = {"metadata": {"name": "a"}, "spec": {"list": [{} for _ in range(100_000)]}}
    text = json.dumps({"items": [item] * 20, "metadata": {}}).encode()
    tracemalloc.start()
    decode_list(text, lambda item: item["metadata"]["name"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(text)
