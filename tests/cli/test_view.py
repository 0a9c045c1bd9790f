"""The text of the panel, of the plain lines and of the result."""

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from finetune_cli import view
from finetune_cli.view import Snapshot

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING = {
    "phase": "Running",
    "stage": "Training",
    "message": "step 124 of 354, loss 1.731, about 1h7m left",
    "attempt": 2,
    "restarts": 1,
    "workers": {"desired": 2, "running": 2},
    "progress": {
        "step": 124,
        "totalSteps": 354,
        "trainLoss": 1.731,
        "learningRate": 9.1e-6,
        "tokensPerSecond": 15800.4,
        "mfu": 0.47,
        "etaSeconds": 4020,
    },
    "display": {"eta": "1h7m", "restarted": "PeerLost at step 130"},
    "evaluation": {"baseline": 2.413, "last": 1.802, "lastStep": 120},
    "usage": {
        "deviceSeconds": 7200,
        "productiveDeviceSeconds": 5400,
        "lostDeviceSeconds": 360,
        "overheadDeviceSeconds": 1440,
    },
    "fieldOfANewerOperator": {"a": 1},
}
PLAN = {
    "zeroStage": 2,
    "microBatchSize": 1,
    "gradientAccumulationSteps": 2,
    "globalBatchSize": 4,
    "learningRate": 1e-5,
    "totalSteps": 354,
    "warmupSteps": 2,
    "checkpointBytes": 0,
}


def snapshot(seconds: float = 60, events=(), note="", **status) -> Snapshot:
    created = CREATED.isoformat()
    metadata = {"name": "a", "namespace": "default", "creationTimestamp": created}
    job = {"metadata": metadata, "status": status}
    return Snapshot.of(job, list(events), CREATED + timedelta(seconds=seconds), note)


def event(reason: str, uid: str = "1", kind: str = "Normal"):
    return {
        "metadata": {"uid": uid},
        "type": kind,
        "reason": reason,
        "message": "text",
        "lastTimestamp": "2026-01-01T00:00:30Z",
    }


def rendered(shot: Snapshot, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view.panel(shot))
    return console.file.getvalue()


def test_the_panel_shows_progress_loss_usage_and_events():
    text = rendered(snapshot(3600, [event("CheckpointVerified")], **RUNNING))
    for expected in (
        "default/a  Running / Training  1h0m",
        "124 of 354  loss 1.7310  lr 9.10e-06",
        "15,800 tokens/s  MFU 47 %  about 1h7m left",
        "2.4130 before training, 1.8020 at step 120",
        "2.000 device hours (75% productive, 5% lost, 20% overhead)",
        "2 of 2 running  attempt 2",
        "1, the last one after PeerLost at step 130",
        "00:00:30 CheckpointVerified: text",
    ):
        assert expected in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("stage", ["LoadingModel", "Exporting", None])
def test_the_time_left_is_the_one_in_the_columns(stage):
    """The newest progress can be that of an earlier attempt, so the operator decides."""
    text = rendered(snapshot(3600, **RUNNING | {"stage": stage, "display": {"loss": "1.731"}}))
    assert "15,800 tokens/s" in text
    assert "left" not in text.replace(RUNNING["message"], "")


@pytest.mark.parametrize(
    ("forward_pass", "text"),
    [
        ("Rows", "packed rows are computed exactly as separate documents"),
        ("Document", "exact one document at a time, not in packed rows, so slower"),
    ],
)
def test_the_outcome_of_the_check_of_the_model_is_shown(forward_pass, text):
    plan = PLAN | {"forwardPass": forward_pass}
    shot = snapshot(3600, **RUNNING | {"plan": plan})
    assert re.search(rf"check +{text}", rendered(shot))
    assert all(len(line) <= 80 for line in rendered(shot).splitlines())
    assert f"01:00:00 check: {text}" in view.plain(None, shot)
    assert f"01:00:00 check: {text}" in view.plain(snapshot(3599, **RUNNING), shot)
    assert view.plain(shot, shot) == []
    older = snapshot(3600, **RUNNING | {"plan": PLAN})
    assert "check" not in rendered(older) + "".join(view.plain(None, older))


def test_without_a_status_the_panel_waits_for_the_operator():
    assert "waiting for the operator" in rendered(snapshot(5))
    assert "is finetune-operator running?" not in rendered(snapshot(5))
    assert "is finetune-operator running?" in rendered(snapshot(40))


def test_plain_lines_appear_once_and_only_for_changes():
    before = snapshot(60, [event("Preparing")], phase="Preparing", message="preparing")
    assert view.plain(None, before) == [
        "00:00:30 Preparing: text",
        "00:01:00 Preparing: preparing",
    ]
    assert view.plain(before, snapshot(61, [event("Preparing")], phase="Preparing")) == []
    after = snapshot(62, [event("Preparing")], **RUNNING)
    assert view.plain(before, after) == [f"00:01:02 Running / Training: {RUNNING['message']}"]


@pytest.mark.parametrize("phase", ["Queued", "Suspending", "Suspended", "Hibernating"])
def test_an_unknown_phase_is_shown_as_the_operator_wrote_it(phase):
    shot = snapshot(phase=phase, stage="Dreaming", reason="Newer", message="text", attempt=3)
    assert f"default/a  {phase} / Dreaming (Newer)" in rendered(shot)
    assert view.plain(None, shot) == [f"00:01:00 {phase} / Dreaming (Newer): text"]
    assert not shot.status.finished


def test_fields_that_cannot_be_parsed_are_left_out():
    newer = RUNNING | {
        "evaluation": {"baseline": {"loss": 2.4}},
        "conditions": [{"type": "New"}],
        "message": "x" * 5000,
    }
    text = rendered(snapshot(**newer))
    assert "124 of 354" in text
    assert "Running / Training" in text
    assert "validation" not in text


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ({"lastTimestamp": "2026-01-01T00:00:10Z"}, "00:00:10"),
        ({"lastTimestamp": None, "eventTime": "2026-01-01T00:00:20.123456Z"}, "00:00:20"),
        (
            {"eventTime": "2026-01-01T00:00:20.1Z", "series": {"lastObservedTime": None}},
            "00:00:20",
        ),
        ({"series": {"lastObservedTime": "2026-01-01T00:00:30.5Z", "count": 2}}, "00:00:30"),
        ({"lastTimestamp": None, "eventTime": None}, "00:00:40"),
    ],
)
def test_the_time_of_events_by_different_clients(times, shown):
    metadata = {"uid": "1", "creationTimestamp": "2026-01-01T00:00:40Z"}
    found = {"metadata": metadata, "reason": "Odd", "message": None, **times}
    assert view.event_line(found) == f"{shown} Odd: "


def test_events_are_shown_oldest_first():
    late = event("Late", "1")
    early = event("Early", "2") | {"lastTimestamp": None, "eventTime": "2026-01-01T00:00:05.5Z"}
    assert [e["reason"] for e in snapshot(events=[late, early]).events] == ["Early", "Late"]


def test_a_finished_job_shows_its_result():
    done = RUNNING | {
        "phase": "Succeeded",
        "message": "the model is at pvc://w/final",
        "completionTime": "2026-01-01T00:05:00Z",
        "output": {"location": "pvc://w/final", "sizeBytes": 2_000_000, "verified": True},
    }
    lines = view.result(snapshot(400, **done))
    assert lines[0] == "default/a Succeeded after 5m"
    assert lines[-1] == "  model       pvc://w/final (2 MB, verified)"


def test_a_failed_job_shows_its_reason_and_message():
    lines = view.result(
        snapshot(60, phase="Failed", reason="BadData", message="train.jsonl line 17: not JSON")
    )
    assert lines == ["default/a Failed after 60s: BadData", "  train.jsonl line 17: not JSON"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (89, "89s"), (90, "1m"), (3600, "1h0m"), (90_000, "1d1h"), (-5, "0s")],
)
def test_durations_are_rounded(seconds, text):
    assert view.duration(seconds) == text
