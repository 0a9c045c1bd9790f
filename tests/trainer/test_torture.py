"""Ranks that are killed in the middle of saves: a short run of tests/trainer/torture.py."""

from pathlib import Path

import pytest

from tests.trainer import torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_no_checkpoint_is_lost_when_ranks_are_killed_in_saves(tmp_path: Path) -> None:
    counts = torture.run(torture.make_job(tmp_path), 20, 7, lambda counts: None)
    assert counts.kills == 20
    assert counts.unpublished > 0  # some kills happened in the middle of saves
