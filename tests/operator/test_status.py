"""The patches of statuses, and when they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.progress import Progress
from finetune_api.status import Attempt, Condition, FineTuneJobStatus, Usage, WorkerCounts
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
def test_a_merge_patch_applied_to_the_old_status_gives_the_new_one(old, new):
    assert merged(old, merge_patch(old, new)) == new


@given(OBJECTS)
def test_the_patch_of_an_unchanged_status_is_empty(value):
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
    "message": ({"message": "step 1 of 9, about 3m left"}, Urgency.PROGRESS),
    "device seconds": ({"usage": Usage(device_seconds=2)}, Urgency.USAGE),
    "step": ({"progress": Progress(step=2, total_steps=9)}, Urgency.PROGRESS),
    "one more worker": (
        {
            "workers": WorkerCounts(desired=10, running=2),
            "conditions": ready("Starting", "2 of 10 workers run"),
        },
        Urgency.PROGRESS,
    ),
    "the reason to wait": (
        {"conditions": ready("Unschedulable", "1 of 10 workers run")},
        Urgency.NOW,
    ),
    "phase": ({"phase": "Restarting"}, Urgency.NOW),
    "restart": ({"restarts": 1}, Urgency.NOW),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_how_soon_a_change_is_written(change, expected):
    assert urgency(OLD, OLD.replace(**change)) is expected


SENTENCE = "a-1-0: 0/40 nodes are available: {} Insufficient nvidia.com/gpu"


@pytest.mark.parametrize("phase", ["Queued", "Preparing", "Starting", "Restarting", "Pending"])
def test_a_changed_sentence_of_the_scheduler_is_not_urgent(phase):
    """Another node that joined or left the cluster changes the sentence for every job."""
    old = OLD.replace(phase=phase, reason="Unschedulable", message=SENTENCE.format(37))
    new = old.replace(message=SENTENCE.format(38))
    assert urgency(old, new) is Urgency.PROGRESS
    assert urgency(old.replace(reason=None, message="0 of 10 workers run"), new) is Urgency.NOW


def test_a_changed_message_of_an_attempt_is_not_urgent():
    attempt = Attempt(number=1, start_time=at(0), message="one")
    old = OLD.replace(attempts=[attempt])
    new = OLD.replace(attempts=[attempt.replace(message="two")])
    assert urgency(old, new) is Urgency.PROGRESS
    assert urgency(old, OLD.replace(attempts=[attempt.replace(reason="Hang")])) is Urgency.NOW


HELD = {"usage": Usage(device_seconds=2)}


@pytest.mark.parametrize(
    ("phase", "stage", "expected"),
    [
        ("Starting", None, Urgency.HELD),
        ("Running", "LoadingModel", Urgency.HELD),
        ("Restarting", None, Urgency.HELD),
        ("Running", "Training", Urgency.USAGE),
        ("Running", "Exporting", Urgency.USAGE),
    ],
)
def test_the_cost_of_a_gang_that_does_not_train_is_shown_sooner(phase, stage, expected):
    """Nothing else of its status changes, and it may hold its devices for a long time."""
    old = OLD.replace(phase=phase, stage=stage)
    assert urgency(old, old.replace(**HELD)) is expected
    assert urgency(old.replace(phase="Queued"), old.replace(**HELD)) is Urgency.NOW


def test_the_cost_of_a_gang_that_does_not_train_is_written_once_a_minute():
    throttle, key = Throttle(5.0), ("default", "a")
    assert throttle.wait(key, Urgency.NOW, 100.0) == 0
    assert throttle.wait(key, Urgency.HELD, 110.0) == pytest.approx(50.0)
    assert throttle.wait(key, Urgency.HELD, 160.0) == 0
    assert throttle.wait(key, Urgency.HELD, 161.0) == pytest.approx(59.0)


def test_progress_is_written_once_per_interval_and_facts_at_once():
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
    # Each job has a slot of its own, so that no job is reconciled without being able to write.
    assert waits == pytest.approx([0, 0.05, 0.1, 0.15])
    assert throttle.wait(JOBS[3], Urgency.PROGRESS, 100.04) == pytest.approx(0.11)
    assert [throttle.wait(key, Urgency.PROGRESS, 100.16) for key in JOBS[1:]] == [0, 0, 0]


def test_the_jobs_of_one_namespace_wait_for_each_other_and_not_for_those_of_others():
    throttle = Throttle(5.0)
    for number in range(200):
        throttle.wait(("many", f"job-{number}"), Urgency.PROGRESS, 100.0)
    waits = [throttle.wait(key, Urgency.PROGRESS, 100.0) for key in JOBS]
    # The two namespaces share the rate.
    assert waits == pytest.approx([0, 0.1, 0.2, 0.3])
    assert throttle.wait(("many", "late"), Urgency.PROGRESS, 100.0) == pytest.approx(10.0)


def test_an_urgent_write_or_a_deletion_gives_up_the_slot_of_a_job():
    throttle = Throttle(5.0)
    for key in JOBS:
        throttle.wait(key, Urgency.PROGRESS, 100.0)
    assert throttle.wait(JOBS[1], Urgency.NOW, 100.01) == 0
    throttle.forget(JOBS[2])
    assert throttle.wait(JOBS[1], Urgency.PROGRESS, 105.1) == 0
    assert throttle.wait(JOBS[2], Urgency.PROGRESS, 105.1) == pytest.approx(0.05)
