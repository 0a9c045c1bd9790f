"""What docs/alerts.md says of causes of restarts is what the operator decides."""

import re

from finetune_operator.job_metrics import CAUSES
from finetune_operator.plan.outcomes import ENDINGS
from tests.docs.pages import page, sections

BULLETS = re.findall(
    r"^\* (.*?)(?=^\*|^$)", sections(page("alerts"))["FineTuneJobRestartLoop"], re.M | re.S
)
NAMED = {
    cause: " ".join(text.split())
    for text in BULLETS
    for cause in re.findall(r"`(\w+)`", text.partition(":")[0])
}


def uncounted() -> set[str]:
    """Return the reasons of endings that are neither counted nor permanent."""
    rows = ENDINGS.values()
    return {row.reason for row in rows if row.reason and not (row.counted or row.permanent)}


def test_the_causes_that_are_named_exist():
    assert len(NAMED) > 5
    assert set(NAMED) <= CAUSES


def test_those_that_do_not_count_are_said_to_and_no_others():
    assert uncounted() >= {"Preempted", "Completed"}
    said = {cause for cause, text in NAMED.items() if "not count against `maxRestarts`" in text}
    assert said == uncounted() & set(NAMED)
