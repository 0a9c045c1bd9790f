"""The repository is written in plain English and in the terms of docs/glossary.md."""

import pytest

from hack import language

EXAMPLES = {
    "told": "the pod is told to stop",
    "tells": "def tells_its_age():",
    "said": "as was said",
    "hear": "def _hear(self):",
    "words": "in its own words",
    "last_words": "last_words = None",
    "lies": "the file lies on storage",
    "mended": "until it is mended",
    "nobody": "nobody reads it",
    "wishes": "wishes = []",
    "doomed": "doomed = [pod]",
    "stray": "a stray pod",
    "settle": "wait for it to settle",
    "condemn": "self._condemn(step)",
    "_trust": "self._trust(engine)",
    "keeper": "keeper.py",
    "turns": "two processes take turns",
    "patience": "_PATIENCE = 10",
    "is no f": "it is no file",
    "Absent:": "Absent: 3.",
    ", for it": "wait, for it is slow",
    "in vain": "it waited in vain",
}
GOOD = (
    "there is no file of this name",
    "the lease is no longer held",
    "A keyword argument",
    "the turns of a chat",
    "early_stopping.patience evaluations",
    "a field that is settled",
    "trustRemoteCode: false",
)


@pytest.mark.parametrize(("found", "line"), EXAMPLES.items(), ids=EXAMPLES)
def test_each_banned_word_is_found(found: str, line: str) -> None:
    matches = [match.lower() for ban in language.BANS for match in ban.found("file.py", line)]
    assert found.lower() in matches


@pytest.mark.parametrize("line", GOOD)
def test_terms_of_the_field_are_allowed(line: str) -> None:
    assert [match for ban in language.BANS for match in ban.found("file.py", line)] == []


def test_no_banned_word_is_used() -> None:
    assert list(language.findings([])) == []


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    assert list(language.docstrings([])) == []
