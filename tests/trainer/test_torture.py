"""Ranks killed in the middle of saves: a sample of `make torture`."""

from pathlib import Path

import pytest

from tests.trainer import torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_nothing_is_lost_when_ranks_die_in_saves(tmp_path: Path) -> None:
    toll = torture.run(torture.make_job(tmp_path), 20, 7, lambda toll: None)
    assert toll.kills == 20
    assert toll.unpublished > 0  # kills did come in the middle of saves
