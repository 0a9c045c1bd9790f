"""Reports and results that have the form of a report, and lie: what becomes of the status."""

import copy
import json
import logging
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.run import Report
from finetune_api.status import FineTuneJobStatus
from finetune_operator.logs import OneLine
from finetune_operator.plan import usage
from finetune_operator.plan.decision import Decision
from finetune_operator.plan.observe import Pod
from tests.operator import podstatus
from tests.operator.worlds import (
    OUTPUT,
    at,
    checkpoint,
    ended,
    look,
    make_job,
    prepare_pod,
    prepared,
    progressed,
    report,
    running,
    worker,
)
from tests.security.hostile import HUGE, NUMBERS, TEXTS, TIMES

MOST = 32 * 1024  # bytes of a status
CONTROLS = {chr(c) for c in range(32)} - {"\n", "\t"} | {"\x7f", "\x9b", "\u202e", "\u2066"}


def values(item: Any) -> list[Any]:
    """All leaves."""
    if isinstance(item, dict):
        return [leaf for inner in item.values() for leaf in values(inner)]
    if isinstance(item, list):
        return [leaf for inner in item for leaf in values(inner)]
    return [item]


def bounded(status: FineTuneJobStatus) -> None:
    """It can be written: small, numbers that the API server takes, text that can be shown."""
    item = status.to_dict()
    assert len(json.dumps(item, allow_nan=False)) < MOST
    for leaf in values(item):
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


# What the trainer says when all is well; one value of it is replaced by a lie.
LEDGER = {"productiveSeconds": 5.0, "redoneSeconds": 1.0, "firstStep": 0, "highestStep": 6}
FACTS: dict[str, Any] = {
    "progress": {
        "step": 6,
        "totalSteps": 100,
        "epoch": 0.1,
        "trainLoss": 2.5,
        "learningRate": 1e-5,
        "gradNorm": 1.0,
        "tokensSeen": 1000,
        "skippedSteps": 0,
        "tokensPerSecond": 10.0,
        "etaSeconds": 60,
        "lastUpdateTime": "2026-01-01T00:00:30Z",
        "checkpointProblem": "disk full",
    },
    "evaluation": {"baseline": 3.0, "last": 2.0, "lastStep": 5, "best": 2.0, "bestStep": 5},
    "ledger": LEDGER,
    "checkpoints": [checkpoint(5).to_dict()],
}
REPORT = {
    **report().to_dict(),
    **FACTS,
    "ranks": [{"rank": 0, "ageSeconds": 0.1}],
    "earlierAttempts": [{"attempt": 1, "updateTime": "2026-01-01T00:00:40Z", "ledger": LEDGER}],
}
RESULT = {
    "outcome": "Failed",
    "reason": "Crashed",
    "message": "boom",
    "failedRank": 0,
    **FACTS,
    "output": OUTPUT.to_dict(),
}
PREPARED = {"outcome": "Succeeded", "reason": "Completed", "prepared": prepared().to_dict()}


def paths(item: Any, *above: Any) -> list[tuple[Any, ...]]:
    """Ways to each value, the containers included."""
    inner = item.items() if isinstance(item, dict) else enumerate(item)
    found = []
    for key, value in inner:
        found.append((*above, key))
        if isinstance(value, dict | list):
            found += paths(value, *above, key)
    return found


def with_lie(item: Any, path: tuple[Any, ...], lie: Any) -> str:
    item = copy.deepcopy(item)
    place = item
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = lie
    return json.dumps(item)


LIES = [*NUMBERS, *TEXTS, *TIMES, None, [], {}, [[]] * 100, True, 10**12, 2**53 - 1]
JOB = running()


def reported(text: str) -> Decision | None:
    """What is decided about a running job with that report; None when it is not taken."""
    try:
        said = Report.model_validate_json(text)
    except ValueError:
        return None
    return look(JOB, worker(0), worker(1), now=60, report=said)


@pytest.mark.parametrize("path", paths(REPORT), ids=lambda path: ".".join(map(str, path)))
def test_a_report_with_a_lie_is_refused_or_bounded(path):
    for lie in LIES:
        decision = reported(with_lie(REPORT, path, lie))
        if decision:
            bounded(decision.status)


@pytest.mark.slow
@pytest.mark.parametrize("path", paths(RESULT), ids=lambda path: ".".join(map(str, path)))
def test_last_words_with_a_lie_are_refused_or_bounded(path):
    for lie in LIES:
        text = with_lie(RESULT, path, lie)
        for code in (0, 1):
            pods = [ended(worker(i), code, 50, text) for i in (0, 1)]
            decision = look(JOB, *pods, now=60)
            bounded(decision.status)
            bounded(look(JOB.with_status(decision.status), *pods, now=60).status)


@pytest.mark.parametrize("path", paths(PREPARED), ids=lambda path: ".".join(map(str, path)))
def test_what_a_prepare_pod_found_is_refused_or_bounded(path):
    for lie in [*LIES, 0]:
        pod = ended(prepare_pod(), 0, 5, with_lie(PREPARED, path, lie))
        bounded(look(make_job(), pod, now=6).status)


def test_a_prepare_pod_whose_words_cannot_be_taken_fails_the_job_in_words():
    """It was silent for ever: the status that was made of them could not be written."""
    long = prepared().to_dict() | {"preparedDigest": "x" * 1000}
    pod = ended(prepare_pod(), 0, 5, json.dumps({**PREPARED, "prepared": long}))
    status = look(make_job(), pod, now=6).status
    assert (status.phase, status.reason) == ("Failed", "NoResult")


MESSAGES = {
    "junk": "\x1b[31m" + "x" * 4096,
    "half of a result": json.dumps(RESULT)[:-9],
    "deep": "[" * 4096,
    "controls": "\r\n".join(TEXTS)[:4096],
    "a number": str(HUGE),
    "null": "null",
    "not a word": json.dumps({**RESULT, "reason": "Out of\nMemory"}),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_termination_message_of_any_kind_is_shown_in_bounds(name):
    for code in (0, 1, 75, 255):
        item = worker_item(podstatus.ended(code, MESSAGES[name]))
        pods = [Pod.of(item), worker(1)]
        bounded(look(JOB, *pods, now=60).status)
        bounded(look(JOB, *pods, now=600).status)


def worker_item(status: dict[str, Any]) -> dict[str, Any]:
    """A worker as the API server has it."""
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


def test_a_share_above_one_is_all_there_is():
    status = look(
        JOB, worker(0), worker(1), now=60, report=report(progress={"step": 700, "total_steps": 100})
    ).status
    assert status.display
    assert status.display.progress == "100%"


def test_a_loss_without_bounds_is_shown():
    """A run that diverges: its column has 32 characters, and the status was not written."""
    progress = {"step": 7, "total_steps": 100, "train_loss": 1.25e38}
    status = look(JOB, worker(0), worker(1), now=60, report=report(progress=progress)).status
    assert status.display
    assert status.display.loss == "1.25e+38"
    assert "loss 1.25e+38" in (status.message or "")


def test_an_attempt_is_not_charged_for_time_to_come():
    """A record of an attempt that vanished says until when its gang lived."""
    status = JOB.status
    attempt = status.attempts[0].replace(
        settled=True, estimated=True, vanished_workers=2, vanished_time=at(30), device_seconds=80
    )
    said = report(
        attempt=2,
        earlier_attempts=[
            {"attempt": 1, "update_time": at(10**9), "ledger": progressed(6)["ledger"]}
        ],
    )
    now = at(30) + timedelta(seconds=10)
    status = usage.correct(status.replace(attempts=[attempt]), said.earlier_attempts, now)
    assert status.attempts[0].device_seconds == 80 + 10 * 2 * 4


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.data())
def test_any_value_at_any_place_of_a_report(data):
    path = data.draw(st.sampled_from(paths(REPORT)))
    lie = data.draw(ANY)
    decision = reported(with_lie(REPORT, path, lie))
    if decision:
        bounded(decision.status)


# Labels


@pytest.mark.parametrize("text", ["x", "-1", "", "1.5", "9" * 60, "0x1", "\u0661"])
@pytest.mark.parametrize("where", ["labels/attempt", "labels/worker-index", "annotations/retry"])
def test_a_label_that_nobody_of_us_wrote_is_read(where, text):
    kind, _, name = where.partition("/")
    item = worker_item({})
    item["metadata"].setdefault(kind, {})[f"finetune.dev/{name}"] = text
    pod = Pod.of(item)
    assert -1 in (pod.attempt, pod.index, pod.retry)


# The log


def line(message: str, *arguments: Any) -> str:
    record = logging.LogRecord("finetune.x", logging.INFO, "", 0, message, arguments, None)
    return OneLine("%(levelname)s %(message)s").format(record)


def test_a_record_is_a_line():
    forged = "a\n2026-01-01 ERROR finetune: b\r\x1b[2J\u202e\ud800ü"
    expected = r"INFO said a\n2026-01-01 ERROR finetune: b\r\x1b[2J\u202e\ud800ü"
    assert line("said %s", forged) == expected


def test_a_record_is_short():
    assert len(line("%s", "x" * 10**6)) < 5000
