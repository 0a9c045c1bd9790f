"""Generated addresses: the API server accepts exactly those that are well-formed and parsed."""

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api.uri import ClaimPath, parse
from tests.api.jobs import make_job
from tests.api.server import Server

pytestmark = pytest.mark.cluster

_NAMES = [
    "w",
    "a.b",
    "a-1",
    "A",
    "a_b",
    "-a",
    "a-",
    ".",
    "..",
    "",
    "datasets",
    "b" * 253,
    "b" * 254,
]
_PIECES = [
    *(
        "data",
        "a b",
        "*",
        "**",
        "[ab]",
        "x.jsonl",
        ".",
        "..",
        "...",
        "",
        "?",
        "#",
        "%2e",
        "~",
        "a:b",
    ),
    *("\n", "\t", "\x00", "\x7f", "\x85", "\u00a0", "\u00e9", "\u200d", "\u200e", "\u202e"),
    *(
        "\u2028",
        "\u2066",
        "\u061c",
        "\ufeff",
        "\U0001f600",
        "\u4e2d",
        "\\",
        "'",
        '"',
        "$(A)",
        "@",
        "+",
    ),
]
_SCHEMES = ["pvc://", "hf://", "s3://", "gs://", "", "pvc:/", "PVC://", "az://", " pvc://"]
ADDRESSES = st.builds(
    lambda scheme, names, path, end: scheme + "/".join([*names, *path]) + end,
    st.sampled_from(_SCHEMES[:4]) | st.sampled_from(_SCHEMES),
    st.lists(st.sampled_from(_NAMES), min_size=1, max_size=2),
    st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=3),
    st.sampled_from(["", "/", "\n", "/."]),
).filter(lambda address: 0 < len(address) <= 512)
_NAME_OF = {
    "pvc": r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?",
    "hf": r"[A-Za-z0-9][-A-Za-z0-9_.]*/[A-Za-z0-9][-A-Za-z0-9_.]*",
    "s3": r"[a-z0-9][-a-z0-9_.]+[a-z0-9]",
    "gs": r"[a-z0-9][-a-z0-9_.]+[a-z0-9]",
}
_DIRECTIONS = {"AL", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_MARKS = {"\u061c", "\u200e", "\u200f"}


def allowed(character: str) -> bool:
    """Return whether a character may be in an address, by the Unicode database."""
    directs = unicodedata.bidirectional(character) in _DIRECTIONS - {"AL"} or character in _MARKS
    return not (
        character in "?#" or unicodedata.category(character) in ("Cc", "Zl", "Zp") or directs
    )


def parsed(address: str, form: type[ClaimPath] | None) -> object | None:
    try:
        return ClaimPath.parse(address) if form else parse(address)
    except ValueError:
        return None


def is_well_formed(address: str, form: type[ClaimPath] | None) -> bool:
    """Return whether the parser reads an address with valid names and only allowed characters."""
    if parsed(address, form) is None or not all(map(allowed, address)):
        return False
    scheme, _, rest = address.partition("://")
    return re.match(rf"{_NAME_OF[scheme]}(/|$)", rest) is not None


def accepts(server: Server, **fields: object) -> bool:
    """Return whether the API server accepts a job; a refusal must be about the address."""
    apart = {
        "model": {"source": "pvc://apart/m"},
        "dataset": {"train": [{"source": "pvc://apart/d"}]},
        "checkpoints": {"storage": "pvc://apart/r"},
    }
    code, answer = server.dry_run(make_job(**(apart | fields)))
    assert code == 201 or "must be pvc://CLAIM/PATH" in answer["message"], answer
    return code == 201


@pytest.mark.slow
@settings(max_examples=400)
@given(ADDRESSES)
@example("pvc://w/x")
@example(f"pvc://{'b' * 253}/x")
@example(f"pvc://{'b' * 254}/x")
@example("pvc://w/a\u202eb")
@example("hf://org/name/..")
def test_sources_that_are_accepted_are_exactly_the_well_formed_ones(server: Server, address: str):
    assert accepts(server, model={"source": address}) == is_well_formed(address, None)


@pytest.mark.slow
@settings(max_examples=200)
@given(ADDRESSES)
@example("pvc://w/x")
@example(f"pvc://{'b' * 253}/x")
@example(f"pvc://{'b' * 254}/x")
def test_folders_that_are_accepted_are_exactly_the_well_formed_ones(server: Server, address: str):
    assert accepts(server, cache=address) == is_well_formed(address, ClaimPath)


@given(ADDRESSES)
def test_a_parsed_address_is_parsed_again_as_the_same(address: str):
    for form in (None, ClaimPath):
        if (found := parsed(address, form)) is not None:
            assert parsed(str(found), form) == found
