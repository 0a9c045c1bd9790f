"""The page on restarts and the table of endings say the same."""

import re

from finetune_api import reasons
from finetune_operator.plan.outcomes import ENDINGS, STOPS, Cause, Ending
from tests.docs.pages import page, rows, sections

ROWS = rows(sections(page("operate/restarts"))["Outcomes of an attempt"])
# How a row of the page begins -> the rows of the table that it describes.
DESCRIBED: dict[str, tuple[Cause | str, ...]] = {
    "every worker ended with 0": (Cause.COMPLETED,),
    "64, 65, 66 or 77": (Cause.PERMANENT_EXIT,),
    "out of memory twice": (),  # outcomes.PERMANENT_IF_REPEATED
    "a worker was asked to stop (": (Cause.PREEMPTED,),
    "the same, but not beyond": (),  # counted_without_progress
    "a worker was asked to stop and was killed": (Cause.KILLED,),
    "a pod or its node was lost": (Cause.POD_VANISHED, Cause.NODE_LOST, Cause.POD_FAILED),
    "crash, killed": (Cause.OTHER_EXIT,),
    "storage cannot be written": (Cause.STORAGE,),
    "hang (89)": (Cause.OTHER_EXIT, reasons.HANG),
    "75 without a request": (Cause.STOPPED_UNASKED,),
    "the network between workers": (Cause.CONSEQUENT_EXIT,),
    "`spec.suspend`": (reasons.SUSPENDED,),
    "`activeDeadlineSeconds` or": (
        reasons.ACTIVE_DEADLINE_EXCEEDED,
        reasons.START_DEADLINE_EXCEEDED,
    ),
    "for `gangStartTimeoutSeconds`": (reasons.GANG_INCOMPLETE,),
    "a worker ended because a peer": (Cause.PEER_MISSING,),
    "a pod was lost, preempted": (Cause.START_INTERRUPTED,),
    "a node refused or evicted": (Cause.REFUSED,),
    "the job is edited while": (reasons.CONFIGURATION_CHANGED,),
    "no worker can start": (),
    "a pod cannot be created": (),
}
TABLE: dict[Cause | str, Ending] = {**ENDINGS, **STOPS}


def described(start: str) -> list[str]:
    (row,) = [cells for cells in ROWS if cells[0].startswith(start)]
    return row


def test_every_ending_is_on_the_page_and_every_row_of_the_page_is_an_ending():
    assert len(ROWS) == len(DESCRIBED)
    assert [described(start) for start in DESCRIBED]
    assert {cause for causes in DESCRIBED.values() for cause in causes} == {*TABLE}


def test_the_page_says_what_is_counted_and_what_fails():
    for start, causes in DESCRIBED.items():
        _, then, counts = described(start)
        for ending in [TABLE[cause] for cause in causes]:
            expected = "yes" if ending.counted else "no"
            final = ending.permanent or ending.outcome == "Succeeded"
            assert counts == ("" if final else expected), start
            assert ending.permanent == (then == "Failed"), start


def test_the_page_has_the_delays_of_the_table():
    for start, causes in DESCRIBED.items():
        found = re.search(r"after (\d+) s × 2ⁿ", described(start)[1])
        for ending in [TABLE[cause] for cause in causes]:
            assert ending.backs_off * 10 == (int(found[1]) if found else 0), start
