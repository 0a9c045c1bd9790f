"""Ten thousand histories break no invariant, and the invariants detect mistakes."""

import logging
import os

import pytest

from tests.operator.simulator.invariants import BY_MOMENT
from tests.operator.simulator.mutations import MUTATIONS
from tests.operator.simulator.pinned import PINNED
from tests.operator.simulator.search import search
from tests.operator.simulator.shards import simulate
from tests.operator.simulator.world import run

HISTORIES = int(os.environ.get("FINETUNE_HISTORIES", "10000"))
SEED = 1  # the same histories in every run; `make simulate` uses others


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_history_breaks_an_invariant():
    shards = simulate(HISTORIES, SEED, max(2, os.cpu_count() or 2))
    found = [problem for _, problem in shards if problem]
    assert not found, found[0]


@pytest.mark.parametrize("name", PINNED)
def test_a_pinned_history_breaks_no_invariant(name):
    run(*PINNED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_invariants_detect(name, monkeypatch):
    """A mistake is detected within the pinned histories and a few hundred others."""
    MUTATIONS[name](monkeypatch)
    # Setting the attribute of the manager would leave it in the caches of all loggers.
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(AssertionError):
            _run_histories()
    finally:
        logging.disable(logging.NOTSET)


def _run_histories():
    for config, history in PINNED.values():
        run(config, history)
    search(SEED, 600, shrink=False)


def test_every_invariant_has_a_sentence_that_is_unique_for_its_moment():
    sentences = [(i.moment, i.sentence) for rules in BY_MOMENT.values() for i in rules]
    assert len(sentences) == len(set(sentences)) >= 20
