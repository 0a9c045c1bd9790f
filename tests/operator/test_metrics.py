"""The metrics page: names, bounds, and series that end with their job."""

import ast
import asyncio
import re
import time
import urllib.request
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from finetune_api import reasons
from finetune_api.base import format_time
from finetune_api.exit_codes import MEANINGS
from finetune_api.progress import Evaluation, Progress
from finetune_api.status import Attempt, Usage
from finetune_local.cache import TREE
from finetune_local.ports import free_port
from finetune_operator.health import Health
from finetune_operator.job_metrics import CAUSES, METRICS, measure
from finetune_operator.metrics import CONTENT_TYPE, Metrics, Snapshot
from finetune_operator.plan.observe import Job
from finetune_operator.plan.outcomes import ENDINGS, STOPS
from finetune_operator.queue import RetryError
from finetune_operator.status import Urgency
from tests.operator.test_jobs import KEY, Cache, item
from tests.operator.worlds import (
    START,
    at,
    checkpoint,
    committed,
    follow,
    look,
    make_job,
    report,
    running,
    worker,
)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def series(page: bytes) -> Series:
    """Return the value by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


async def of(*jobs: Job, **changes) -> Series:
    view = Snapshot(jobs=jobs, **changes)
    return series(await Metrics(lambda: view).page())


def values(found: Series, name: str, label: str = "") -> dict[str, float]:
    """Return the values of a metric of the only job, by the value of a label ("" if none)."""
    return {
        dict(labels).get(label, ""): value
        for (metric, labels), value in found.items()
        if metric == name
    }


def training(**changes) -> Job:
    """A running job with a report."""
    facts = {"step": 25, "total_steps": 100, "last_update_time": at(90), "mfu": 0.47}
    facts |= {"tokens_per_second": 15800, "train_loss": 1.7, "learning_rate": 9e-6}
    facts |= {"grad_norm": 0.8}
    newest = report(
        progress=Progress(**(facts | changes)),
        checkpoints=[checkpoint(20)],
        evaluation=Evaluation(baseline=2.5, last=1.9, last_step=20, best=1.8, best_step=10),
    )
    job = running()
    return job.with_status(look(job, worker(0), worker(1), now=100, report=newest).status)


async def test_a_running_job_has_all_metrics():
    found = await of(training())
    assert values(found, "finetune_job_phase", "phase") == {"Running": 1}
    assert values(found, "finetune_job_progress_ratio") == {"": 0.25}
    assert values(found, "finetune_job_tokens_per_second") == {"": 15800}
    assert values(found, "finetune_job_mfu_ratio") == {"": 0.47}
    assert values(found, "finetune_job_train_loss") == {"": 1.7}
    assert values(found, "finetune_job_learning_rate") == {"": 9e-6}
    assert values(found, "finetune_job_gradient_norm") == {"": 0.8}
    losses = values(found, "finetune_job_validation_loss", "which")
    assert losses == {"baseline": 2.5, "last": 1.9, "best": 1.8}
    assert values(found, "finetune_job_step_timestamp_seconds") == {"": at(90).timestamp()}
    assert values(found, "finetune_job_running_timestamp_seconds") == {"": at(20).timestamp()}
    assert values(found, "finetune_job_checkpoint_timestamp_seconds") == {"": START.timestamp()}
    assert values(found, "finetune_job_checkpoint_interval_seconds") == {"": 900}
    assert values(found, "finetune_job_restarts_total") == {"": 0}
    kinds = values(found, "finetune_job_device_seconds", "kind")
    assert set(kinds) == {"productive", "lost", "overhead"}
    assert sum(kinds.values()) == 2 * 4 * 90


async def test_measurements_end_when_the_job_does_not_run():
    job = training()
    status = job.status.replace(phase="Restarting")
    found = await of(job.with_status(status))
    for name in ("tokens_per_second", "train_loss", "learning_rate", "gradient_norm"):
        assert values(found, f"finetune_job_{name}") == {}
    assert len(values(found, "finetune_job_validation_loss", "which")) == 3
    assert values(found, "finetune_job_running_timestamp_seconds") == {}
    assert values(found, "finetune_job_progress_ratio") == {"": 0.25}


async def test_a_job_without_a_status_has_only_the_series_that_are_known():
    found = await of(make_job())
    own = {name for name, labels in found if name.startswith("finetune_job_")}
    assert own == {"finetune_job_restarts_total", "finetune_job_checkpoint_interval_seconds"}


@pytest.mark.parametrize(
    ("own", "seconds"),
    [
        ({"intervalSeconds": 60}, {"": 60}),
        ({"intervalSteps": 100}, {}),
        ({"intervalSteps": 100, "intervalSeconds": 60}, {"": 60}),
    ],
)
async def test_the_checkpoint_interval_is_that_of_the_job(own, seconds):
    found = await of(make_job(checkpoints={"storage": "pvc://w/runs/a"} | own))
    assert values(found, "finetune_job_checkpoint_interval_seconds") == seconds


def with_attempts(*ends: tuple[str, str], restarts: int) -> Job:
    """A job whose earlier attempts ended as given, and whose newest attempt runs."""
    attempts = [
        Attempt(number=number, start_time=START, outcome=outcome, reason=reason)
        for number, (outcome, reason) in enumerate(ends, start=1)
    ]
    newest = Attempt(number=len(ends) + 1, start_time=START)
    job = committed()
    return job.with_status(job.status.replace(attempts=[*attempts, newest], restarts=restarts))


async def test_restarts_by_cause_add_up_to_all_restarts():
    job = with_attempts(
        ("Failed", "Crashed"),
        ("Preempted", "Preempted"),
        ("Suspended", "Suspended"),  # not a restart
        ("Failed", "Crashed"),
        restarts=7,
    )
    found = await of(job)
    causes = values(found, "finetune_job_restarts_by_cause", "cause")
    assert causes == {"Crashed": 2, "Preempted": 1, "Earlier": 4}
    assert values(found, "finetune_job_restarts_total") == {"": sum(causes.values())}


async def test_a_cause_from_a_pod_is_not_used_as_a_label():
    hostile = ['x"} 1\nfinetune_job_phase 9', "ü" * 64, *(f"R{number}" for number in range(7))]
    job = with_attempts(*(("Failed", reason) for reason in hostile), restarts=9)
    assert values(await of(job), "finetune_job_restarts_by_cause", "cause") == {"Other": 9}


async def test_every_cause_that_the_operator_sets_is_known():
    causes = {"Crashed", "Evicted", "Hang", "OutOfMemory", "PeerLost", "Preempted", "WorkerLost"}
    assert causes < CAUSES
    job, lost = running(), worker(1).vanished(at(190))
    _, after = follow(job, worker(0), lost, now=200)
    ended = after.status.attempts[-1]
    assert ended.reason in CAUSES


def reasons_in(folder: str) -> set[str]:
    """Return the reasons that the modules of a folder name by their constants."""
    nodes = (
        n for path in (TREE / folder).rglob("*.py") for n in ast.walk(ast.parse(path.read_text()))
    )
    found = {
        n.attr
        for n in nodes
        if isinstance(n, ast.Attribute)
        and isinstance(n.value, ast.Name)
        and n.value.id == "reasons"
    }
    return {getattr(reasons, name) for name in found if isinstance(getattr(reasons, name), str)}


def test_every_reason_that_can_end_an_attempt_is_known():
    """The example was CheckpointDamaged, which the trainer reports and the metrics called Other."""
    rows = [*ENDINGS.values(), *STOPS.values()]
    causes = reasons_in("trainer_image/finetune_trainer")
    causes |= {found.reason for found in MEANINGS.values()}
    causes |= {row.reason for row in rows if row.reason}
    assert "CheckpointDamaged" in causes
    assert causes - CAUSES == set()


@pytest.mark.parametrize("reason", ["UnexpectedAdmissionError", "OutOfcpu", "NodeAffinity"])
async def test_a_refusal_of_the_kubelet_is_a_cause(reason):
    job = with_attempts(("Failed", reason), restarts=1)
    assert values(await of(job), "finetune_job_restarts_by_cause", "cause") == {reason: 1}


async def test_a_report_cannot_break_the_page():
    numbers = {"total_steps": 0, "tokens_per_second": 1e300, "step": 10**12}
    page = await of(training(**numbers))
    assert values(page, "finetune_job_progress_ratio") == {}
    assert values(page, "finetune_job_tokens_per_second") == {"": 1e300}


async def test_the_number_of_series_of_a_job_is_bounded():
    ends = [("Failed", cause) for cause in sorted(CAUSES)[:9]]
    job = with_attempts(*ends, restarts=99)
    job = job.with_status(
        training().status.replace(attempts=job.status.attempts, restarts=job.status.restarts)
    )
    found = await of(job)
    assert len([name for name, _ in found if name.startswith("finetune_job_")]) <= 31


async def test_series_end_with_the_job():
    cache = Cache()
    cache.jobs.take(item(5))
    metrics = Metrics(lambda: Snapshot(jobs=cache.jobs.seen()))

    async def names() -> set[str]:
        return {dict(labels).get("name", "") for _, labels in series(await metrics.page())} - {""}

    assert await names() == set()  # It was not parsed yet.
    cache.jobs.get(KEY)
    assert await names() == {"a"}
    cache.jobs.take(item(6))  # Until it is parsed, the previous version counts.
    assert await names() == {"a"}
    cache.jobs.remove(KEY, "u1")
    assert await names() == set()


def ended(name: str, minutes: float, now: float) -> dict[str, Any]:
    """Return a job that ended some minutes ago."""
    end = datetime.fromtimestamp(now - 60 * minutes, UTC)
    found = item(5, uid=name, metadata={"name": name})
    status = {"phase": "Failed", "restarts": 2, "completionTime": format_time(end)}
    return found | {"status": status}


async def test_series_end_some_time_after_the_job_has_ended():
    now = time.time()
    cache = Cache(measure=measure)
    for name, minutes in {"new": 5, "old": 90}.items():
        cache.jobs.take(ended(name, minutes, now))
        cache.jobs.get(("default", name))
    cache.jobs.take(item(6, metadata={"name": "on"}))
    cache.jobs.get(("default", "on"))

    async def names(at: float) -> set[str]:
        view = Snapshot(jobs=cache.jobs.seen(), ended=cache.jobs.ended(since=at - 3600))
        found = series(await Metrics(lambda: view).page())
        return {dict(labels).get("name", "") for _, labels in found} - {""}

    assert await names(now) == {"new", "on"}
    assert await names(now + 3600) == {"on"}
    view = Snapshot(ended=cache.jobs.ended(since=0))
    assert values(series(await Metrics(lambda: view).page()), "finetune_job_phase") == {}


async def test_the_series_of_a_job_do_not_vanish_when_it_ends():
    cache = Cache(measure=measure)
    cache.jobs.take(item(5) | {"status": {"phase": "Running", "restarts": 2}})
    cache.jobs.get(KEY)

    async def phases() -> dict[str, float]:
        view = Snapshot(jobs=cache.jobs.seen(), ended=cache.jobs.ended(since=0))
        found = series(await Metrics(lambda: view).page())
        assert values(found, "finetune_job_restarts_total") == {"": 2}
        return values(found, "finetune_job_phase", "phase")

    assert await phases() == {"Running": 1}
    cache.jobs.take(ended("a", 0, time.time()) | {"metadata": item(6)["metadata"]})
    assert await phases() == {"Running": 1}, "the last version that was parsed"
    cache.jobs.get(KEY)
    assert await phases() == {"Failed": 1}


async def counters(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Return the counters of namespaces: name without prefix -> other label -> value."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (name, labels), value in series(await metrics.page()).items():
        own = dict(labels)
        if own.pop("namespace", None) == "default" and name.startswith("finetune_operator_"):
            found[name.removeprefix("finetune_operator_")]["".join(own.values())] = value
    return found


async def test_sums_of_a_namespace_outlive_its_jobs_and_never_decrease():
    metrics, job = Metrics(Snapshot), running()
    job = job.with_status(job.status.replace(usage=None))

    def write(**changes: Any) -> None:
        nonlocal job
        new = job.status.replace(**changes)
        metrics.write(Urgency.NOW, job, new)
        job = job.with_status(new)

    write(usage=Usage(device_seconds=100, productive_device_seconds=60, lost_device_seconds=20))
    attempts = [a.replace(outcome="Failed", reason="Hang") for a in job.status.attempts]
    write(attempts=attempts)
    write(restarts=1, attempts=[*attempts, attempts[0].replace(number=2, outcome=None)])
    first = await counters(metrics)
    assert first["restarts_total"] == {"Hang": 1}
    assert first["device_seconds_total"] == {"": 100}
    assert first["productive_device_seconds_total"] == {"": 60}
    assert first["lost_device_seconds_total"] == {"": 20}
    assert first["jobs_ended_total"] == {"Succeeded": 0, "Failed": 0}
    # A correction moves time from one part to another.
    write(usage=Usage(device_seconds=150, productive_device_seconds=50, lost_device_seconds=70))
    write(phase="Failed")
    last = await counters(metrics)
    assert last["device_seconds_total"] == {"": 150}
    assert last["productive_device_seconds_total"] == {"": 60}
    assert last["lost_device_seconds_total"] == {"": 70}
    assert last["jobs_ended_total"] == {"Succeeded": 0, "Failed": 1}


async def test_a_standby_shows_its_own_metrics_and_no_jobs():
    found = await of(training(), leading=False, lease=0.0, waiting=3)
    assert values(found, "finetune_operator_leading") == {"": 0}
    assert values(found, "finetune_operator_workqueue_depth") == {"": 3}
    assert not [name for name, _ in found if name.startswith("finetune_job_")]


async def test_a_single_replica_has_no_remaining_lease():
    found = await of()
    assert values(found, "finetune_operator_leading") == {"": 1}
    assert values(found, "finetune_operator_lease_remaining_seconds") == {}


async def test_requests_writes_and_reconciles_are_counted():
    metrics = Metrics(Snapshot)
    metrics.request("patch", 200)
    metrics.request("patch", 200)
    metrics.request("watch", None)
    for urgency in (Urgency.NOW, Urgency.PROGRESS, Urgency.HELD, Urgency.USAGE):
        metrics.write(urgency, running(), running().status)

    async def reconcile(key):
        if key == KEY:
            raise RetryError

    measured = metrics.timed(reconcile)
    await measured(("default", "b"))
    with pytest.raises(RetryError):
        await measured(KEY)
    found = series(await metrics.page())
    requests = {
        tuple(dict(labels).values()): value
        for (name, labels), value in found.items()
        if name == "finetune_operator_api_requests_total"
    }
    assert requests == {("200", "patch"): 2, ("none", "watch"): 1}
    writes = values(found, "finetune_operator_status_writes_total", "what")
    assert writes == {"facts": 1, "progress": 1, "usage": 2}
    reconciles = values(found, "finetune_operator_reconcile_duration_seconds_count", "result")
    assert reconciles == {"done": 1, "retry": 1}


async def test_the_page_is_served_by_the_health_server():
    port = free_port()
    metrics = Metrics(lambda: Snapshot(jobs=[training()]))
    task = asyncio.create_task(Health(page=metrics.page).run(port))
    await asyncio.sleep(0.1)

    def ask() -> tuple[str, bytes]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            return response.headers["Content-Type"], response.read()

    content_type, page = await asyncio.to_thread(ask)
    assert content_type == CONTENT_TYPE
    assert ("finetune_job_phase", (*KEY_LABELS, ("phase", "Running"))) in series(page)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


KEY_LABELS = (("name", "a"), ("namespace", "default"))


# Names, and the page of the documentation that lists them


async def families() -> dict[str, tuple[str, str, set[str]]]:
    """Return the type, the help and the labels of every metric of this project."""
    metrics = Metrics(
        lambda: Snapshot(jobs=[with_attempts(("Failed", "Crashed"), restarts=1)], lease=9)
    )
    metrics.request("get", 200)
    restarted = with_attempts(("Failed", "Crashed"), restarts=0)
    metrics.write(Urgency.NOW, restarted, restarted.status.replace(restarts=1))
    full = Metrics(lambda: Snapshot(jobs=[training()]))
    found: dict[str, tuple[str, str, set[str]]] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for page in (await metrics.page(), await full.page()):
        for family in text_string_to_metric_families(page.decode()):
            if family.name.startswith("process_"):
                continue
            name = family.name + ("_total" if family.type == "counter" else "")
            labels[name] |= {label for sample in family.samples for label in sample.labels}
            found[name] = (family.type, family.documentation, labels[name] - {"le"})
    return found


async def test_names_follow_the_conventions_of_prometheus():
    for name, (kind, text, labels) in (await families()).items():
        assert re.fullmatch(r"finetune_(operator|job)_[a-z_]+", name)
        assert (kind == "counter") == name.endswith("_total"), name
        assert text.endswith("."), name
        assert "job" not in labels, "Prometheus uses this label itself"
        if "seconds" in name and kind != "counter":
            assert name.endswith("_seconds"), name


async def test_the_page_of_the_documentation_lists_every_metric():
    rows = re.findall(
        r"^\| `(finetune_\w+)` \| (\w+) \|([^|]*)\|[^|]*\|[^|]*\|$",
        (TREE / "docs" / "reference" / "metrics.md").read_text(),
        re.M,
    )
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(documented) == len(rows)
    assert documented == {
        name: (kind, labels) for name, (kind, _, labels) in (await families()).items()
    }


async def test_the_help_on_the_page_is_that_of_the_declaration():
    found = await families()
    for metric in METRICS:
        assert found[metric.name][1] == metric.help
