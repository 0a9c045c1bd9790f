"""What pods report is untrusted: each value is refused, or read and bounded in the status.

Each test first shows that the operator reads the well-formed message, so that a mutated field is
one that the operator would use. A message with a misspelled field fails these tests.
"""

import copy
import json
import logging
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from finetune_api.devices import DeviceType
from finetune_api.progress import (
    CheckpointRecord,
    DataSummary,
    Evaluation,
    Output,
    Progress,
    SourceSummary,
    StepLedger,
)
from finetune_api.run import AttemptRecord, PrepareResult, Report, Result
from finetune_api.status import FineTuneJobStatus
from finetune_operator.logs import OneLine
from finetune_operator.plan import corrections
from finetune_operator.plan.observe import Pod
from tests.operator import podstatus
from tests.operator.worlds import (
    OUTPUT,
    SETTINGS,
    at,
    checkpoint,
    ended,
    look,
    make_job,
    prepare_pod,
    progressed,
    report,
    running,
    worker,
)
from tests.security.hostile import HUGE, NUMBERS, TEXTS, TIMES

MAX_STATUS_BYTES = 32 * 1024
CONTROLS = {chr(c) for c in range(32)} - {"\n", "\t"} | {"\x7f", "\x9b", "\u202e", "\u2066"}


def leaves(item: Any) -> list[Any]:
    """Return all values that are neither a dict nor a list."""
    if isinstance(item, dict):
        return [leaf for inner in item.values() for leaf in leaves(inner)]
    if isinstance(item, list):
        return [leaf for inner in item for leaf in leaves(inner)]
    return [item]


def assert_writable(status: FineTuneJobStatus) -> None:
    """The API server takes the status: its size, its numbers and its characters are bounded."""
    item = status.to_dict()
    assert len(json.dumps(item, allow_nan=False)) < MAX_STATUS_BYTES
    for leaf in leaves(item):
        if isinstance(leaf, int):
            assert -(2**63) <= leaf < 2**63
        elif isinstance(leaf, float):
            assert math.isfinite(leaf)
        elif isinstance(leaf, str):
            assert not CONTROLS & set(leaf)
    totals = status.usage
    if totals:
        parts = (totals.productive_device_seconds, totals.lost_device_seconds)
        assert min(*parts, totals.overhead_device_seconds) >= 0
        assert sum(parts) + totals.overhead_device_seconds == totals.device_seconds


# Well-formed messages with every field that they can have. Tests replace one value at a time.
LEDGER = {"productiveSeconds": 5.0, "redoneSeconds": 1.0, "firstStep": 0, "highestStep": 6}
CHECKPOINT = checkpoint(5).to_dict() | {"validationLoss": 2.0}
FACTS: dict[str, Any] = {
    "progress": {
        "step": 6,
        "totalSteps": 100,
        "epoch": 0.1,
        "trainLoss": 2.5,
        "routerLoss": 0.02,
        "unusedExperts": 3,
        "learningRate": 1e-5,
        "gradNorm": 1.5,
        "tokensSeen": 1000,
        "skippedSteps": 0,
        "tokensPerSecond": 10.0,
        "trainedTokensPerSecond": 9.0,
        "mfu": 0.4,
        "deviceMemoryBytes": 70_000_000_000,
        "deviceName": "NVIDIA H100 80GB HBM3, 85.0 GB",
        "etaSeconds": 60,
        "lastUpdateTime": "2026-01-01T00:00:30Z",
        "checkpointProblem": "disk full",
        "kernelProblem": "slower, without fused attention",
    },
    "evaluation": {"baseline": 3.0, "last": 2.0, "lastStep": 5, "best": 2.0, "bestStep": 5},
    "ledger": LEDGER,
    "checkpoints": [CHECKPOINT],
}
REPORT = {
    **report().to_dict(),
    **FACTS,
    "waitingFor": "worker 1",
    "earlierAttempts": [{"attempt": 1, "updateTime": "2026-01-01T00:00:40Z", "ledger": LEDGER}],
}
RESULT = {
    "apiVersion": "finetune.dev/v1alpha1",
    "outcome": "Failed",
    "reason": "BadData",
    "message": "boom",
    **FACTS,
    "output": OUTPUT.to_dict(),
}
DATA = {
    "examples": 100,
    "rows": 50,
    "epochRows": 60,
    "tokens": 1000,
    "trainedTokens": 500,
    "packingEfficiency": 0.9,
    "droppedOverlong": 2,
    "truncated": 3,
    "split": 4,
    "droppedEmpty": 5,
    "droppedUntrained": 6,
    "invalid": 7,
    "withSpecialTokens": 13,
    "duplicates": 8,
    "validationExamples": 9,
    "validationRows": 10,
    "validationTrainedTokens": 11,
    "stepsPerEpoch": 12,
    "sources": [
        {
            "source": "pvc://w/train.jsonl",
            "rows": 50,
            "examples": 100,
            "passes": 3.0,
            "format": "text",
        }
    ],
    "ignoredColumns": ["id"],
}
PREPARED = {
    "apiVersion": "finetune.dev/v1alpha1",
    "outcome": "Succeeded",
    "reason": "Completed",
    "message": "",
    "checkpoints": [],
    "prepared": {
        "preparedDigest": "p",
        "runDigest": "r",
        "modelRevision": "m",
        "parameterCount": 1000,
        "forwardPass": "Document",
        "modelFacts": {
            "layers": 2,
            "hidden": 8,
            "vocabulary": 100,
            "layerParameters": 80,
            "largestParameter": 800,
            "activeParameters": 160,
            "attentionWidth": 16,
            "rowTokens": 64,
            "layerBytes": 1000,
        },
        "data": DATA,
        "warnings": ["pvc://w/b.jsonl has no row"],
        "leftOut": [{"file": "pvc://w/a.jsonl", "row": "line 7", "why": "no assistant turn"}],
    },
}
FINISHED = copy.deepcopy(PREPARED)
FINISHED["prepared"] |= {"finished": OUTPUT.to_dict()}
JOB = running()
GPU = DeviceType(resource="nvidia.com/gpu", memory_bytes=85_000_000_000, peak_flops=989e12)
KNOWN_DEVICE = replace(SETTINGS, device_types={"GPU": GPU})
Path = tuple[str | int, ...]


def paths(item: Any, *above: str | int) -> list[Path]:
    """Return the paths of all values, including those of dicts and lists."""
    inner = item.items() if isinstance(item, dict) else enumerate(item)
    found: list[Path] = []
    for key, value in inner:
        found.append((*above, key))
        if isinstance(value, dict | list):
            found += paths(value, *above, key)
    return found


def value_at(item: Any, path: Path) -> Any:
    """Return the value at a path; None if there is no such path."""
    for key in path:
        try:
            item = item[key]
        except (KeyError, IndexError):
            return None
    return item


def replaced(item: Any, path: Path, value: Any) -> str:
    """Return the message as JSON, with another value at the path."""
    item = copy.deepcopy(item)
    value_at(item, path[:-1])[path[-1]] = value
    return json.dumps(item)


def parse(model: type[BaseModel], text: str) -> Any:
    """Return what the model reads of a message; None if it refuses it."""
    try:
        return model.model_validate_json(text)
    except ValueError:
        return None


def assert_effective(message: Any, path: Path, value: Any, read: Any) -> None:
    """The reader saw the replaced value, unless it equals the one that it replaced."""
    before = value_at(message, path)
    if value != before:
        assert value_at(read.to_dict(), path) != before, f"{path} is not read"


def names(path: Path) -> str:
    return ".".join(map(str, path))


VALUES = [*NUMBERS, *TEXTS, *TIMES, None, [], {}, [[]] * 100, True, 10**12, 2**53 - 1]


# The well-formed messages are read.


@pytest.mark.parametrize(
    ("model", "message"),
    [(Report, REPORT), (Result, RESULT), (Result, PREPARED), (Result, FINISHED)],
    ids=["report", "result", "prepared", "finished"],
)
def test_every_field_of_a_well_formed_message_is_read(model, message):
    assert parse(model, json.dumps(message)).to_dict() == message


def test_the_messages_have_every_field_of_their_models():
    examples: list[tuple[type[BaseModel], Any]] = [
        (Report, REPORT),
        (AttemptRecord, REPORT["earlierAttempts"][0]),
        (Result, RESULT | PREPARED),
        (PrepareResult, FINISHED["prepared"]),
        (DataSummary, DATA),
        (SourceSummary, DATA["sources"][0]),
        (Progress, FACTS["progress"]),
        (Evaluation, FACTS["evaluation"]),
        (CheckpointRecord, CHECKPOINT),
        (StepLedger, LEDGER),
        (Output, OUTPUT.to_dict()),
    ]
    for model, example in examples:
        assert {field.alias for field in model.model_fields.values()} == set(example), model


# Reports


def decide_on_report(text: str) -> Report | None:
    """Give a report to the planner and check the status; return what was read of the report."""
    read: Report | None = parse(Report, text)
    if read:
        status = look(JOB, worker(0), worker(1), now=60, report=read).status
        assert_writable(status)
        assert status.stage == read.stage or status.reason == "Hang"
        assert_shown(status, read)
    return read


def assert_shown(status: FineTuneJobStatus, read: Report | Result) -> None:
    """The status shows the facts that were read."""
    assert status.progress == read.progress
    assert status.evaluation == read.evaluation
    assert status.checkpoints == read.checkpoints


def test_a_well_formed_report_is_shown():
    assert decide_on_report(json.dumps(REPORT))


@pytest.mark.parametrize("path", paths(REPORT), ids=names)
def test_a_report_with_a_wrong_value_is_refused_or_bounded(path):
    refused = 0
    for value in VALUES:
        read = decide_on_report(replaced(REPORT, path, value))
        if read:
            assert_effective(REPORT, path, value, read)
        refused += read is None
    assert refused, "no value is refused"


# Results


def decide_on_result(text: str, code: int) -> Result | None:
    """Give a result to the planner and check the status; return what was read of the result."""
    pods = [ended(worker(i), code, 50, text) for i in (0, 1)]
    assert pods[0].ended
    read = pods[0].ended.result()
    status = look(JOB, *pods, now=60).status
    assert_writable(status)
    if read:
        assert_shown(status, read)
    later = look(JOB.with_status(status), *pods, now=60).status
    assert_writable(later)
    if code:
        assert status.attempts[-1].reason == (read.reason if read else "Crashed")
    elif read is None:
        assert (later.phase, later.reason) == ("Failed", "NoResult")
    return read


def test_a_well_formed_result_is_shown():
    read = decide_on_result(json.dumps(RESULT), 1)
    assert read
    assert read.reason == "BadData"


@pytest.mark.slow
@pytest.mark.parametrize("path", paths(RESULT), ids=names)
def test_a_result_with_a_wrong_value_is_refused_or_bounded(path):
    refused = 0
    for value in VALUES:
        text = replaced(RESULT, path, value)
        for code in (0, 1):
            read = decide_on_result(text, code)
        if read:
            assert_effective(RESULT, path, value, read)
        refused += read is None
    assert refused, "no value is refused"


def decide_on_prepared(text: str) -> Result | None:
    """Give the result of a prepare pod to the planner and check the status."""
    pod = ended(prepare_pod(), 0, 5, text)
    assert pod.ended
    read = pod.ended.result()
    status = look(make_job(), pod, now=6, settings=KNOWN_DEVICE).status
    assert_writable(status)
    status = look(make_job(), pod, now=6).status
    assert_writable(status)
    if read is None or read.prepared is None:
        assert (status.phase, status.reason) == ("Failed", "NoResult")
    elif status.phase == "Succeeded":
        assert read.prepared.finished
        assert status.output == read.prepared.finished
    else:
        assert status.resolved
        assert status.resolved.prepared_digest == read.prepared.prepared_digest
        assert status.resolved.run_digest == read.prepared.run_digest
        assert status.resolved.model_revision == read.prepared.model_revision
        assert status.resolved.parameter_count == read.prepared.parameter_count
        assert status.data
        assert status.data.rows == read.prepared.data.rows
    return read


@pytest.mark.parametrize("message", [PREPARED, FINISHED], ids=["to be trained", "finished"])
def test_a_well_formed_result_of_a_prepare_pod_is_used(message):
    assert decide_on_prepared(json.dumps(message))


@pytest.mark.parametrize(
    ("message", "path"),
    [
        *((PREPARED, path) for path in paths(PREPARED)),
        *((FINISHED, path) for path in paths(FINISHED) if "finished" in path),
    ],
    ids=lambda item: names(item) if isinstance(item, tuple) else "",
)
def test_a_result_of_a_prepare_pod_with_a_wrong_value_is_refused_or_bounded(message, path):
    refused = 0
    for value in [*VALUES, 0]:
        read = decide_on_prepared(replaced(message, path, value))
        if read:
            assert_effective(message, path, value, read)
        refused += read is None
    assert refused, "no value is refused"


def test_a_result_of_a_prepare_pod_that_is_refused_fails_the_job_with_a_reason():
    """The job once stayed without any status, because the API server refused the one to write."""
    text = replaced(PREPARED, ("prepared", "preparedDigest"), "x" * 1000)
    status = look(make_job(), ended(prepare_pod(), 0, 5, text), now=6).status
    assert (status.phase, status.reason) == ("Failed", "NoResult")


MESSAGES = {
    "junk": "\x1b[31m" + "x" * 4096,
    "half of a reason": json.dumps(RESULT)[: json.dumps(RESULT).index(RESULT["reason"]) + 3],
    "deep": "[" * 4096,
    "controls": "\r\n".join(TEXTS)[:4096],
    "a number": str(HUGE),
    "null": "null",
    "reason with a line break": json.dumps({**RESULT, "reason": "Out of\nMemory"}),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_termination_message_that_is_not_a_result_is_shown_within_bounds(name):
    for code, reason in ((0, None), (1, "Crashed"), (75, None), (255, "Crashed")):
        item = worker_item(podstatus.ended(code, MESSAGES[name]))
        pods = [Pod.of(item), worker(1)]
        status = look(JOB, *pods, now=60).status
        assert_writable(status)
        assert_writable(look(JOB, *pods, now=600).status)
        if reason:
            assert status.attempts[-1].reason == reason
            assert status.attempts[-1].message


def worker_item(status: dict[str, Any]) -> dict[str, Any]:
    """Return a worker as the API server returns it."""
    metadata = {
        "name": "a-1-0",
        "namespace": "default",
        "uid": "uid-1-0",
        "labels": {
            "finetune.dev/role": "worker",
            "finetune.dev/attempt": "1",
            "finetune.dev/worker-index": "0",
        },
    }
    return {"metadata": metadata, "status": status}


def test_progress_beyond_the_total_is_shown_as_100_percent():
    status = look(
        JOB, worker(0), worker(1), now=60, report=report(progress={"step": 700, "total_steps": 100})
    ).status
    assert status.display
    assert status.display.progress == "100%"


def test_the_loss_of_a_diverging_run_fits_its_column():
    """A column has 32 characters; the status was once refused because of a longer one."""
    progress = {"step": 7, "total_steps": 100, "train_loss": 1.25e38}
    status = look(JOB, worker(0), worker(1), now=60, report=report(progress=progress)).status
    assert status.display
    assert status.display.loss == "1.25e+38"
    assert "loss 1.25e+38" in (status.message or "")


def test_an_attempt_is_not_charged_for_time_in_the_future():
    """The record of an attempt that vanished contains the time until which its gang lived."""
    status = JOB.status
    attempt = status.attempts[0].replace(
        settled=True, estimated=True, vanished_workers=2, vanished_time=at(30), device_seconds=80
    )
    newest = report(
        attempt=2,
        earlier_attempts=[
            {"attempt": 1, "update_time": at(10**9), "ledger": progressed(6)["ledger"]}
        ],
    )
    now = at(30) + timedelta(seconds=10)
    status = status.replace(attempts=[attempt])
    status = corrections.by_records(status, newest.earlier_attempts, now)
    assert status.attempts[0].device_seconds == 80 + 10 * 2 * 4


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.data())
def test_a_report_with_any_value_is_refused_or_bounded(data):
    path = data.draw(st.sampled_from(paths(REPORT)))
    value = data.draw(ANY)
    read = decide_on_report(replaced(REPORT, path, value))
    if read and not isinstance(value, dict | list | str):
        assert_effective(REPORT, path, value, read)


# Labels


@pytest.mark.parametrize("text", ["x", "-1", "", "1.5", "9" * 60, "0x1", "\u0661"])
@pytest.mark.parametrize("where", ["labels/attempt", "labels/worker-index", "annotations/retry"])
def test_a_label_that_is_not_a_number_is_read_as_minus_one(where, text):
    kind, _, name = where.partition("/")
    item = worker_item({})
    item["metadata"].setdefault(kind, {})[f"finetune.dev/{name}"] = text
    pod = Pod.of(item)
    assert -1 in (pod.attempt, pod.index, pod.retry)


# Log lines


def line(message: str, *arguments: Any) -> str:
    record = logging.LogRecord("finetune.x", logging.INFO, "", 0, message, arguments, None)
    return OneLine("%(levelname)s %(message)s").format(record)


def test_a_log_record_is_one_line():
    forged = "a\n2026-01-01 ERROR finetune: b\r\x1b[2J\u202e\ud800ü"
    expected = r"INFO read a\n2026-01-01 ERROR finetune: b\r\x1b[2J\u202e\ud800ü"
    assert line("read %s", forged) == expected


def test_a_log_record_is_short():
    assert len(line("%s", "x" * 10**6)) < 5000
