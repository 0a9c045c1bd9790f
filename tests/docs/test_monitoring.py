"""The page on alerts describes the causes of restarts as the operator decides them."""

import re

from finetune_operator.job_metrics import CAUSES
from finetune_operator.plan.outcomes import ENDINGS
from tests.docs.pages import page, sections

BULLETS = re.findall(
    r"^\* (.*?)(?=^\*|^$)",
    sections(page("operate/monitoring"))["FineTuneJobRestartLoop"],
    re.M | re.S,
)
NAMED = {
    cause: " ".join(text.split())
    for text in BULLETS
    for cause in re.findall(r"`(\w+)`", text.partition(":")[0])
}


def uncounted() -> set[str]:
    """Return the reasons of endings that lead to a restart which is not counted."""
    rows = [row for row in ENDINGS.values() if row.outcome != "Released"]
    return {row.reason for row in rows if row.reason and not (row.counted or row.permanent)}


def test_the_named_causes_exist():
    assert len(NAMED) > 5
    assert set(NAMED) <= CAUSES


def test_the_page_names_exactly_the_causes_that_are_not_counted():
    assert uncounted() >= {"Preempted", "Completed"}
    stated = {cause for cause, text in NAMED.items() if "not count against `maxRestarts`" in text}
    assert stated == uncounted() & set(NAMED)
