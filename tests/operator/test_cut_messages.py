"""Results whose end the kubelet cut off, because the pod has many containers."""

import pytest

from finetune_api.names import POD_MESSAGES_MAX_BYTES
from finetune_api.progress import CheckpointRecord, DataSummary, Output, SourceSummary
from tests.operator.worlds import (
    START,
    committed,
    ended,
    follow,
    look,
    make_job,
    prepare_pod,
    prepared,
    progressed,
    result,
    running,
    worker,
)


def cut(message: str, containers: int) -> str:
    """Return what a kubelet writes into the status of a pod with so many containers."""
    kept = message.encode()[: POD_MESSAGES_MAX_BYTES // containers]
    assert len(kept) < len(message.encode())
    return kept.decode(errors="replace")


@pytest.mark.parametrize("containers", [5, 8])
def test_a_trained_job_succeeds_although_its_result_was_cut_off(containers):
    location = "pvc://w/" + "x" * 200
    records = [
        CheckpointRecord(
            step=step,
            location=f"{location}/checkpoints/step-{step}",
            creation_time=START,
            size_bytes=1,
            verified=True,
            world_size=8,
        )
        for step in range(100, 0, -10)
    ]
    output = Output(location=f"{location}/final", size_bytes=5, verified=True)
    message = result(output=output, **{**progressed(100), "checkpoints": records})
    gang = (ended(worker(0), 0, 90, cut(message, containers)), ended(worker(1), 0, 90))
    _, job = follow(running(), *gang, now=95)
    status = job.status
    assert (status.phase, status.output) == ("Succeeded", output)
    assert status.attempts[-1].last_step == 100


def test_a_preparation_succeeds_although_its_sources_were_cut_off():
    source = SourceSummary(source="pvc://w/" + "x" * 150, rows=3, examples=7)
    data = DataSummary(
        examples=100,
        rows=50,
        tokens=1000,
        trained_tokens=500,
        packing_efficiency=0.9,
        sources=[source] * 16,
    )
    _check_commits(cut(result(prepared=prepared(data=data)), 6))


def test_a_preparation_succeeds_although_what_it_left_out_was_cut_off():
    left_out = [{"file": "pvc://w/" + "x" * 150, "row": "line 7", "why": "y" * 100}] * 8
    message = result(prepared=prepared(left_out=left_out, warnings=["z" * 100] * 2))
    begin = message.index('"warnings"')
    for end in range(begin + 11, message.index("xxx", begin), 37):
        _check_commits(message[:end])


def _check_commits(message: str) -> None:
    job = make_job()
    decision = look(job, ended(prepare_pod(job), 0, 5, message), now=6)
    assert decision.commits
    assert decision.status.attempt == 1
    assert decision.status.plan == committed().status.plan
