"""Which reports make the operator look at a job."""

import pytest

from finetune_api.progress import Progress
from finetune_api.run import RankHeartbeat, Report
from finetune_operator.reports import tells_more
from tests.operator.worlds import at

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
        ({"activity_age_seconds": 61.0}, True),
        ({"stage": "Training"}, True),
        ({"progress": Progress(step=1, total_steps=9)}, True),
    ],
    ids=["the same", "it lives", "nothing moves", "another stage", "a step"],
)
def test_a_report_that_only_grew_older_is_no_news(changes, looks):
    assert tells_more(BASE, BASE.replace(**changes)) is looks


def test_the_first_report_is_news():
    assert tells_more(None, BASE)
