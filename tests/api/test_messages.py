"""Tests the messages between operator and trainer."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.exit_codes import MEANINGS, ExitCode, is_permanent, meaning
from finetune_api.progress import (
    CheckpointRecord,
    DataSummary,
    Progress,
    SourceSummary,
    StepLedger,
)
from finetune_api.run import PrepareResult, Report, Result
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, Condition, FineTuneJobStatus
from finetune_api.uri import ClaimPath, HubPath, ObjectPath, parse
from finetune_local.cache import TREE
from tests.api.jobs import BAD_SOURCES, BAD_URIS, SOURCES
from tests.api.largest import largest

TIME = "2026-01-01T00:00:00Z"


def record(step: int, length: int = 300) -> CheckpointRecord:
    return CheckpointRecord(
        step=step,
        location="x" * length,
        creation_time=TIME,
        size_bytes=1,
        verified=True,
        world_size=2,
    )


@pytest.mark.slow
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


def prepared(sources: int) -> PrepareResult:
    """Return the result of a preparation with the largest plausible values."""
    found = largest(PrepareResult) | {"finished": None}
    found["data"]["steps_per_epoch"] = None  # the operator fills it in
    found["data"]["sources"] = [
        SourceSummary(source="pvc://w/" + "x" * 200, rows=5, examples=9) for _ in range(sources)
    ]
    return PrepareResult.model_validate(found)


@pytest.mark.parametrize("containers", [1, 3, 5, 6, 8, 10, 12])
def test_a_result_fits_into_a_pod_with_several_containers(containers):
    share = 12288 // containers
    trained = Result(
        outcome="Succeeded",
        reason="Completed",
        message="x" * 1000,
        output={"location": "pvc://w/" + "x" * 290, "sizeBytes": 2**50, "verified": True},
        ledger=StepLedger(productive_seconds=1.5, first_step=0, highest_step=9),
        progress=Progress(step=9, total_steps=9),
        checkpoints=[record(step) for step in range(10, 0, -1)],
    )
    text = trained.to_termination_message(share)
    assert len(text.encode()) <= share
    read = Result.from_termination_message(text)
    assert (read.outcome, read.output, read.ledger) == ("Succeeded", trained.output, trained.ledger)
    ready = Result(outcome="Succeeded", reason="Completed", prepared=prepared(16))
    text = ready.to_termination_message(share)
    assert len(text.encode()) <= share
    read = Result.from_termination_message(text).prepared
    without = ready.prepared.data.replace(sources=[], ignored_columns=[])
    assert read.data.replace(sources=[], ignored_columns=[]) == without
    assert read.run_digest == ready.prepared.run_digest


def test_a_result_that_the_kubelet_cut_off_is_read_as_far_as_it_is_complete():
    result = Result(
        outcome="Succeeded",
        reason="Completed",
        message="größer als zuvor",
        output={"location": "pvc://w/x", "sizeBytes": 12345, "verified": True},
        ledger=StepLedger(productive_seconds=12.5, first_step=0, highest_step=90),
        progress=Progress(step=95, total_steps=100),
        checkpoints=[record(step, 20) for step in (9, 8, 7)],
    )
    whole = result.to_termination_message()
    for length in range(whole.index('"output"') + 12, len(whole)):
        # The kubelet cuts bytes, and the API server replaces what is left of a character.
        text = whole.encode()[:length].decode(errors="replace")
        read = Result.from_termination_message(text)
        for name in read.model_fields_set - {"message", "checkpoints"}:
            assert getattr(read, name) == getattr(result, name), text
        assert result.message.startswith(read.message.rstrip("\ufffd"))
        assert read.checkpoints == result.checkpoints[: len(read.checkpoints)]
    for text in ("", "{", "[1", '"x', "error: the disk is full", '{"outcome":"Suc'):
        with pytest.raises(ValueError):
            Result.from_termination_message(text)


@pytest.mark.slow
def test_a_preparation_is_read_without_the_lists_that_were_cut_off():
    result = Result(outcome="Succeeded", reason="Completed", prepared=prepared(16))
    whole, data = result.to_json(), result.prepared.data.replace(ignored_columns=[])
    for length in range(whole.index('"warnings"') + 13, whole.index('"message"')):
        assert Result.from_termination_message(whole[:length]).prepared.data == result.prepared.data
    for length in range(whole.index('"ignoredColumns"') + 18, whole.index('"warnings"')):
        assert Result.from_termination_message(whole[:length]).prepared.data == data
    for length in range(whole.index('"sources"') + 12, whole.index('"ignoredColumns"') - 1):
        read = Result.from_termination_message(whole[:length]).prepared
        assert read.data == data.replace(sources=[])
    for length in range(whole.index('"prepared"') + 15, whole.index('"sources"')):
        assert Result.from_termination_message(whole[:length]).prepared is None


def test_numbers_that_json_does_not_have_are_refused():
    with pytest.raises(ValidationError, match="finite"):
        Progress(step=1, total_steps=2, train_loss=float("nan"))


def test_replace_validates_and_returns_the_same_object_if_nothing_changes():
    progress = Progress(step=1, total_steps=2, train_loss=0.5)
    assert progress.replace(step=1, train_loss=0.5) is progress
    assert progress.replace(step=2, train_loss=0.5) == Progress(
        step=2, total_steps=2, train_loss=0.5
    )
    for wrong in ({"step": -1}, {"train_loss": float("nan")}, {"total_steps": None}):
        with pytest.raises(ValidationError):
            progress.replace(**wrong)


def test_a_reader_ignores_unknown_fields():
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


@pytest.mark.parametrize("uri", BAD_URIS)
def test_addresses_that_the_api_server_refuses_are_errors(uri):
    with pytest.raises(ValueError, match="pvc://CLAIM/PATH") as caught:
        ClaimPath.parse(uri)
    assert repr(uri) in str(caught.value)


@pytest.mark.parametrize("uri", BAD_SOURCES)
def test_sources_that_the_api_server_refuses_are_errors(uri):
    with pytest.raises(ValueError, match=r"pvc://CLAIM/PATH|s3://BUCKET/KEY") as caught:
        parse(uri)
    assert repr(uri) in str(caught.value)


@pytest.mark.parametrize("uri", SOURCES)
def test_every_form_of_a_source_is_parsed_and_formatted(uri):
    assert str(parse(uri)) == SOURCES[uri]


def test_the_parts_of_a_source():
    assert parse("hf://org/model/a/b") == HubPath("org/model", "a/b")
    assert parse("s3://bucket/a/b") == ObjectPath("s3", "bucket", "a/b")
    assert parse("pvc://w/a") == ClaimPath("w", "a")


def test_an_address_is_parsed_and_formatted():
    path = ClaimPath.parse("pvc://w/runs//a/./b")
    assert str(path) == "pvc://w/runs/a/b"
    assert str(path.under({"w": "/mnt/w"})) == "/mnt/w/runs/a/b"


def test_every_exit_code_has_a_meaning():
    assert set(MEANINGS) == set(ExitCode)
    assert meaning(137).reason == "Crashed"
    assert is_permanent(73, prepare=True)
    assert not is_permanent(73, prepare=False)


def test_the_largest_status_stays_below_32_kibibytes():
    """Every field is at its bound, in ASCII."""
    status = FineTuneJobStatus.model_validate(largest(FineTuneJobStatus))
    given = FineTuneJobStatus.model_fields
    assert set(given) == {name for name in given if getattr(status, name) is not None}
    assert len(status.attempts) == 10
    assert len(status.to_json()) < 32 * 1024


@given(st.integers(0, 1024))
def test_texts_that_are_available_elsewhere_are_cut_instead_of_refused(length):
    sentence = "x" * length
    attempts = [Attempt(number=n, start_time=TIME, message=sentence) for n in range(3)]
    condition = Condition(
        type="Failed",
        status="True",
        reason="Crashed",
        message=sentence,
        last_transition_time=TIME,
    )
    status = FineTuneJobStatus(
        message=sentence, attempts=attempts, folded_attempts=attempts[0], conditions=[condition]
    )
    assert status.message == status.attempts[-1].message == sentence
    assert status.folded_attempts.message is None
    for most, found in ((100, status.attempts[:-1]), (185, status.conditions)):
        short = sentence if length <= most else "x" * (most - 1) + "…"
        assert [one.message for one in found] == [short] * len(found)
    assert FineTuneJobStatus.model_validate_json(status.to_json()) == status


def test_a_long_source_is_shown_by_its_end():
    source = SourceSummary(source=f"pvc://w/{'d' * 200}/train.jsonl", rows=1, examples=1)
    data = DataSummary(
        examples=1, rows=1, tokens=1, trained_tokens=1, packing_efficiency=1, sources=[source]
    )
    shown = FineTuneJobStatus(data=data).data.sources[0].source
    assert len(shown) == 35
    assert shown.startswith("…d")
    assert shown.endswith("/train.jsonl")


def test_a_location_can_contain_the_longest_storage():
    bounds = FineTuneJobSpec.model_json_schema()["$defs"]["Checkpoints"]["properties"]["storage"]
    location = "x" * bounds["maxLength"] + "/checkpoints/step-10000000-e000100"
    assert record(1, length=len(location))


def test_the_folder_operator_does_not_hide_the_standard_library():
    """`operator/` contains a package and must never become one itself."""
    assert not (TREE / "operator" / "__init__.py").exists()
    code = "import collections, operator; print(operator.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True, check=True
    )
    assert "site-packages" not in done.stdout
    assert not done.stdout.startswith(str(TREE))
