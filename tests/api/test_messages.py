"""What operator and trainer say to each other."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.exit_codes import MEANINGS, ExitCode, is_permanent, meaning
from finetune_api.progress import CheckpointRecord, Progress
from finetune_api.run import Report, Result
from finetune_api.status import Attempt, Condition, FineTuneJobStatus
from finetune_api.uri import ClaimPath
from finetune_local.cache import TREE

TIME = "2026-01-01T00:00:00Z"


def record(step: int, length: int = 700) -> CheckpointRecord:
    return CheckpointRecord(
        step=step,
        location="x" * length,
        creation_time=TIME,
        size_bytes=1,
        verified=True,
        world_size=2,
    )


@given(st.text(max_size=1024), st.integers(0, 10))
def test_a_termination_message_always_fits(message, count):
    result = Result(
        outcome="Failed",
        reason="BadData",
        message=message,
        checkpoints=[record(step) for step in range(count)],
        progress=Progress(step=5, total_steps=10),
    )
    text = result.to_termination_message()
    assert len(text.encode()) <= 4096
    back = Result.model_validate_json(text)
    assert (back.outcome, back.reason) == ("Failed", "BadData")


def test_numbers_that_are_no_json_are_refused():
    with pytest.raises(ValidationError, match="finite"):
        Progress(step=1, total_steps=2, train_loss=float("nan"))


def test_a_reader_ignores_what_a_newer_writer_added():
    text = Report(
        job_uid="u",
        attempt=1,
        worker_index=0,
        sequence=1,
        stage="Training",
        stage_since=TIME,
        activity=1,
        activity_age_seconds=0.5,
    ).to_json()
    newer = text[:-1] + ',"brandNew":{"a":1}}'
    assert Report.model_validate_json(newer).worker_index == 0


@pytest.mark.parametrize("uri", ["w/x", "hf://a/b", "pvc://w/../x", "pvc://w/a/..", "pvc:///x"])
def test_addresses_that_leave_the_claim_are_refused(uri):
    with pytest.raises(ValueError, match="pvc://CLAIM/PATH") as caught:
        ClaimPath.parse(uri)
    assert uri in str(caught.value)


def test_an_address_is_read_and_written():
    path = ClaimPath.parse("pvc://w/runs//a/./b")
    assert str(path.child("c")) == "pvc://w/runs/a/b/c"
    assert str(path.under({"w": "/mnt/w"})) == "/mnt/w/runs/a/b"


def test_every_exit_code_has_a_meaning():
    assert set(MEANINGS) == set(ExitCode)
    assert meaning(137).reason == "Crashed"
    assert is_permanent(73, prepare=True)
    assert not is_permanent(73, prepare=False)


def test_the_largest_status_stays_below_32_kilobytes():
    sentence = "x" * 1024
    attempts = [
        Attempt(number=n, start_time=TIME, completion_time=TIME, outcome="Failed", message=sentence)
        for n in range(10)
    ]
    conditions = [
        Condition(
            type=f"T{n}",
            status="True",
            reason="x" * 64,
            message=sentence if n < 3 else "x" * 100,
            last_transition_time=TIME,
        )
        for n in range(7)
    ]
    status = FineTuneJobStatus(
        attempts=attempts,
        conditions=conditions,
        checkpoints=[record(n) for n in range(10)],
        latest_checkpoint=record(1),
        message=sentence,
    )
    assert len(status.to_json()) < 32_000


def test_the_folder_operator_does_not_hide_the_standard_library():
    """`operator/` holds our package and must never become one itself."""
    assert not (TREE / "operator" / "__init__.py").exists()
    code = "import collections, operator; print(operator.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True, check=True
    )
    assert "site-packages" not in done.stdout
    assert not done.stdout.startswith(str(TREE))
