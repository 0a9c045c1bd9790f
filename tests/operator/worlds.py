"""Jobs, pods and worlds for tests of the planner, with defaults for all that a test leaves out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.progress import CheckpointRecord, DataSummary, Output, Progress, StepLedger
from finetune_api.run import PrepareResult, Report, Result
from finetune_api.status import Condition, FineTuneJobStatus
from finetune_operator.plan.decision import Decision
from finetune_operator.plan.observe import Job, Pod, World
from finetune_operator.plan.planner import plan
from finetune_operator.plan.pod_status import Ended
from finetune_operator.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(trainer_image="trainer:1")
OUTPUT = Output(location="pvc://w/runs/a/final", size_bytes=10, verified=True)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def make_spec(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"source": "pvc://w/model"},
        "dataset": {"train": [{"source": "pvc://w/train.jsonl"}]},
        "checkpoints": {"storage": "pvc://w/runs/a"},
        "workers": {"replicas": 2, "devicesPerWorker": 4},
        **changes,
    }


def spec_of(name: str, **changes: Any) -> dict[str, Any]:
    """Return the spec of a job with a storage folder of its own."""
    return make_spec(**{"checkpoints": {"storage": f"pvc://w/runs/{name}"}} | changes)


def make_job(status: FineTuneJobStatus | None = None, **spec: Any) -> Job:
    item = {
        "metadata": {
            "name": "a",
            "namespace": "default",
            "uid": "job-uid",
            "resourceVersion": "1",
            "generation": 1,
        },
        "spec": make_spec(**spec),
    }
    job = Job.of(item)
    return job.with_status(status) if status else job


def prepared(**changes: Any) -> PrepareResult:
    values = {
        "prepared_digest": "p",
        "run_digest": "r",
        "model_revision": "m",
        "parameter_count": 1000,
        "data": DataSummary(
            examples=100, rows=50, tokens=1000, trained_tokens=500, packing_efficiency=0.9
        ),
    }
    return PrepareResult.model_validate(values | changes)


def result(outcome: str = "Succeeded", **changes: Any) -> str:
    values = {"outcome": outcome, "reason": "Completed", **changes}
    return Result.model_validate(values).to_termination_message()


def checkpoint(step: int) -> CheckpointRecord:
    return CheckpointRecord(
        step=step,
        location=f"pvc://w/runs/a/checkpoints/step-{step}",
        creation_time=START,
        size_bytes=1,
        verified=True,
        world_size=8,
    )


def progressed(step: int, *, redone: float = 0.0, saved: int | None = None) -> dict[str, Any]:
    """Return what worker 0 reports after some steps of one second each."""
    return {
        "progress": Progress(step=step, total_steps=100),
        "ledger": StepLedger(
            productive_seconds=step - redone,
            redone_seconds=redone,
            first_step=0,
            highest_step=step,
        ),
        "checkpoints": [checkpoint(saved)] if saved else [],
    }


def report(**changes: Any) -> Report:
    """Return a report of worker 0 in attempt 1."""
    values = {
        "job_uid": "job-uid",
        "attempt": 1,
        "worker_index": 0,
        "sequence": 1,
        "stage": "Training",
        "stage_since": at(20),
        "activity": 5,
        "activity_age_seconds": 0,
    }
    return Report.model_validate(values | changes)


def worker(index: int, attempt: int = 1, **changes: Any) -> Pod:
    values = {
        "name": f"a-{attempt}-{index}",
        "uid": f"uid-{attempt}-{index}",
        "namespace": "default",
        "role": "worker",
        "attempt": attempt,
        "index": index,
        "phase": "Running",
        "owner": "job-uid",
        "ip": "10.0.0.1",
        "scheduled": at(10),
        "running": True,
    }
    return Pod(**(values | changes))


def ended(pod: Pod, code: int, when: float, message: str = "", reason: str = "") -> Pod:
    end = Ended(code, reason or ("Completed" if code == 0 else "Error"), at(when), message)
    phase = "Succeeded" if code == 0 else "Failed"
    return replace(pod, running=False, phase=phase, ended=end, released=at(when))


def look(
    job: Job, *pods: Pod, now: float = 100, settings: Settings = SETTINGS, **changes: Any
) -> Decision:
    """Return the decision about a world."""
    return plan(World(job=job, pods=pods, now=at(now), **changes), settings)


def seen(job: Job, *pods: Pod, now: float) -> World:
    """Return a world."""
    return World(job=job, pods=pods, now=at(now))


def committed(**spec: Any) -> Job:
    """Return a job whose first attempt exists."""
    job = make_job(**spec)
    first = look(job, now=0)
    pod = Pod.of(first.create[0] | {"status": {}} | _identity(first.create[0]))
    decision = look(job, ended(pod, 0, 5, result(prepared=prepared())), now=6)
    assert decision.commits
    return job.with_status(decision.status)


def _identity(item: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": item["metadata"] | {"uid": "prepare-uid"}}


def suspended(job: Job) -> Job:
    """Return the same job, suspended by its user."""
    return replace(job, spec=job.spec.replace(suspend=True))


def running(job: Job | None = None, now: float = 20) -> Job:
    """Return the job once its gang runs."""
    job = job or committed()
    attempt = job.status.attempt or 1
    return job.with_status(look(job, worker(0, attempt), worker(1, attempt), now=now).status)


def prepare_pod(job: Job | None = None, **changes: Any) -> Pod:
    """Return the prepare pod that is created for a job."""
    created = look(job or make_job(), now=0).create[0]
    pod = Pod.of(created | _identity(created) | {"status": {}})
    return replace(pod, **changes)


def pending(index: int, attempt: int = 1, **changes: Any) -> Pod:
    """Return a worker without a node."""
    values = {"running": False, "phase": "Pending", "scheduled": None}
    return worker(index, attempt, **(values | changes))


def policy(job: Job, **changes: Any) -> Job:
    """Return the same job with changes to its runPolicy, by their names in Python."""
    return replace(job, spec=job.spec.replace(run_policy=job.spec.run_policy.replace(**changes)))


def condition(status: FineTuneJobStatus, kind: str) -> Condition:
    return next(c for c in status.conditions if c.type == kind)


def follow(job: Job, *pods: Pod, now: float, most: int = 5, **changes: Any) -> tuple[Decision, Job]:
    """Plan until nothing more is committed; return the last decision and the job after it."""
    for _ in range(most):
        decision = look(job, *pods, now=now, **changes)
        job = job.with_status(decision.status)
        if not decision.commits:
            break
    return decision, job
