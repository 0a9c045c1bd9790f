"""What is written, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.progress import Progress
from finetune_api.status import Condition, FineTuneJobStatus, Usage, WorkerCounts
from finetune_operator.status import Throttle, Urgency, merge_patch, urgency
from tests.operator.merge import merged
from tests.operator.worlds import at

VALUES = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(OBJECTS, OBJECTS)
def test_the_patch_turns_the_old_into_the_new(old, new):
    assert merged(old, merge_patch(old, new)) == new


@given(OBJECTS)
def test_no_change_is_no_patch(value):
    assert merge_patch(value, value) == {}


def ready(reason: str, message: str) -> list[Condition]:
    condition = {"type": "WorkersReady", "status": "False", "reason": reason, "message": message}
    return [Condition.model_validate(condition | {"last_transition_time": at(0)})]


OLD = FineTuneJobStatus(
    phase="Running",
    progress=Progress(step=1, total_steps=9),
    usage=Usage(device_seconds=1),
    workers=WorkerCounts(desired=10, running=1),
    conditions=ready("Starting", "1 of 10 workers run"),
)
CHANGES = {
    "nothing": ({}, Urgency.NONE),
    "sentence": ({"message": "step 1 of 9, about 3m left"}, Urgency.NONE),
    "time": ({"usage": Usage(device_seconds=2)}, Urgency.USAGE),
    "step": ({"progress": Progress(step=2, total_steps=9)}, Urgency.PROGRESS),
    "one more worker": (
        {
            "workers": WorkerCounts(desired=10, running=2),
            "conditions": ready("Starting", "2 of 10 workers run"),
        },
        Urgency.PROGRESS,
    ),
    "why it waits": (
        {"conditions": ready("Unschedulable", "1 of 10 workers run")},
        Urgency.NOW,
    ),
    "phase": ({"phase": "Restarting"}, Urgency.NOW),
    "checkpoint": ({"restarts": 1}, Urgency.NOW),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_how_soon_a_change_is_written(change, expected):
    assert urgency(OLD, OLD.replace(**change)) is expected


def test_progress_is_written_at_most_every_interval_and_the_rest_at_once():
    throttle = Throttle(5.0)
    key = ("default", "a")
    assert throttle.wait(key, Urgency.PROGRESS, 100.0) == 0
    assert throttle.wait(key, Urgency.PROGRESS, 102.0) == pytest.approx(3.0)
    assert throttle.wait(key, Urgency.NOW, 102.0) == 0
    assert throttle.wait(key, Urgency.USAGE, 110.0) == pytest.approx(592.0)


JOBS = [("default", f"job-{number}") for number in range(4)]


def test_all_jobs_together_write_progress_at_most_twenty_times_a_second():
    throttle = Throttle(5.0)
    waits = [throttle.wait(key, Urgency.PROGRESS, 100.0) for key in JOBS]
    # Each its own turn: all would come back for the next one, and all but one in vain.
    assert waits == pytest.approx([0, 0.05, 0.1, 0.15])
    assert throttle.wait(JOBS[3], Urgency.PROGRESS, 100.04) == pytest.approx(0.11)
    assert [throttle.wait(key, Urgency.PROGRESS, 100.16) for key in JOBS[1:]] == [0, 0, 0]


def test_a_turn_is_given_up_by_what_cannot_wait_and_by_a_job_that_goes():
    throttle = Throttle(5.0)
    for key in JOBS:
        throttle.wait(key, Urgency.PROGRESS, 100.0)
    assert throttle.wait(JOBS[1], Urgency.NOW, 100.01) == 0
    throttle.forget(JOBS[2])
    assert throttle.wait(JOBS[1], Urgency.PROGRESS, 105.1) == 0
    assert throttle.wait(JOBS[2], Urgency.PROGRESS, 105.1) == pytest.approx(0.05)
