"""Which reports make the operator look at a job."""

import pytest

from finetune_api.progress import Progress
from finetune_api.run import RankHeartbeat, Report
from finetune_operator import reports
from finetune_operator.reports import SILENT_AFTER, Reports, Target, pause, tells_more
from tests.operator.worlds import at, worker

BASE = Report(
    job_uid="u",
    attempt=1,
    worker_index=0,
    sequence=5,
    stage="LoadingModel",
    stage_since=at(0),
    activity=3,
    activity_age_seconds=2.0,
    ranks=[RankHeartbeat(rank=0, age_seconds=0.5)],
)


@pytest.mark.parametrize(
    ("changes", "looks"),
    [
        ({}, False),
        ({"sequence": 9, "activity": 8, "activity_age_seconds": 4.0, "ranks": []}, False),
        ({"activity_age_seconds": 6000.0}, False),
        ({"stage": "Training"}, True),
        ({"progress": Progress(step=1, total_steps=9)}, True),
    ],
    ids=["the same", "it lives", "nothing moves: the clock tells", "another stage", "a step"],
)
def test_a_report_that_only_grew_older_is_no_news(changes, looks):
    assert tells_more(BASE, BASE.replace(**changes)) is looks


def test_the_first_report_is_news():
    assert tells_more(None, BASE)


class Asked:
    """Reports of one gang, a clock that is set by hand, and the keys that were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(reports.time, "monotonic", lambda: self.now)
        self.told: list[object] = []
        self.pods = (worker(0),)
        self.attempt = 1
        self.reports = Reports(5.0, self._targets, self.told.append)

    def _targets(self, due):
        return [self.target] if due("u") else []

    @property
    def target(self) -> Target:
        return Target(("default", "a"), "u", self.attempt, self.pods)

    def turn(self, seconds: float) -> int:
        """How many gangs are asked after so long."""
        self.now += seconds
        return len(list(self.reports._take_due(self.now)))


def test_a_gang_is_asked_once_an_interval(monkeypatch):
    asked = Asked(monkeypatch)
    assert [asked.turn(seconds) for seconds in (0, 1, 1, 6, 1)] == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("interval", "gangs", "seconds"),
    [(5, 1, 5), (5, 500, 5), (5, 800, 8), (5, 20_000, SILENT_AFTER / 3), (20, 20_000, 20)],
)
def test_many_gangs_are_asked_less_often(interval, gangs, seconds):
    assert pause(interval, gangs) == seconds


def test_silence_is_told_once_and_so_is_its_end(monkeypatch):
    asked = Asked(monkeypatch)
    asked.turn(0)
    asked.reports.take(asked.target, BASE)
    assert len(asked.told) == 1
    for _ in range(3):
        asked.turn(SILENT_AFTER)
        asked.reports.miss(asked.target)
    assert len(asked.told) == 2
    assert asked.reports.silent("u")
    asked.reports.take(asked.target, BASE)  # no news but that it can be heard again
    assert len(asked.told) == 3
    assert not asked.reports.silent("u")
    asked.reports.take(asked.target, BASE)
    assert len(asked.told) == 3


def test_a_new_gang_is_not_silent_because_the_one_before_was(monkeypatch):
    asked = Asked(monkeypatch)
    asked.turn(0)
    asked.turn(2 * SILENT_AFTER)
    assert asked.reports.silent("u")
    asked.attempt = 2
    asked.turn(6)
    assert not asked.reports.silent("u")


def test_what_no_gang_runs_any_more_is_forgotten_but_its_last_report_stays(monkeypatch):
    asked = Asked(monkeypatch)
    asked.turn(0)
    asked.reports.take(asked.target, BASE)
    asked.pods = ()
    assert asked.turn(60) == 0
    assert not asked.reports.silent("u")
    assert asked.reports.newest("u", 1) == BASE
    asked.reports.drop("u")
    assert asked.reports.newest("u", 1) is None
