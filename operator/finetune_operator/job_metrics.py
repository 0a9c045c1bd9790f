"""What a job's status says, as series for Prometheus: made when somebody asks, of what is known.

So they cost nothing at rest, and a job that is gone has none. The number of series of a job is
bounded: no label but its namespace and name holds what a user or a pod wrote (docs/metrics.md).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from finetune_api.reasons import REASONS
from finetune_operator.plan.observe import Job
from finetune_operator.plan.outcomes import RESTARTED

Sample = tuple[tuple[str, ...], float | None]  # values of its own labels; None: there is none
_CHECKPOINT_INTERVAL = 900  # s, where the spec says neither seconds nor steps
CAUSES = {
    *(reason.name for reason in REASONS.values() if reason.ends_attempt),
    # Reasons that a kubelet or the node controller gives a pod that failed.
    *("NodeLost", "NodeShutdown", "Preempting", "Terminated"),
}
OTHER, EARLIER = "Other", "Earlier"


@dataclass(frozen=True)
class JobMetric:
    """A metric that each job may have samples of; its first labels are namespace and name."""

    name: str
    help: str
    samples: Callable[[Job], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    family: type[CounterMetricFamily] | type[GaugeMetricFamily] = GaugeMetricFamily


def collect(jobs: Sequence[Job]) -> Iterator[Metric]:
    """All metrics of these jobs."""
    for metric in METRICS:
        family = metric.family(
            metric.name, metric.help, labels=["namespace", "name", *metric.labels]
        )
        for job in jobs:
            for labels, value in metric.samples(job):
                if value is not None and math.isfinite(value):
                    family.add_metric([job.namespace, job.name, *labels], value)
        yield family


# How each is read from a job


def _phase(job: Job) -> Iterator[Sample]:
    """Of the current phase alone: ten series a job would say no more."""
    if job.status.phase:
        yield (job.status.phase,), 1


def _progress(job: Job) -> Iterator[Sample]:
    progress = job.status.progress
    if progress and progress.total_steps > 0:
        yield (), progress.step / progress.total_steps


def _last_step(job: Job) -> Iterator[Sample]:
    progress = job.status.progress
    yield (), _moment(progress.last_update_time if progress else None)


def _running(job: Job) -> Iterator[Sample]:
    if job.status.phase == "Running" and job.status.attempts:
        yield (), _moment(job.status.attempts[-1].running_time)


def _tokens(job: Job) -> Iterator[Sample]:
    """While it runs: what was measured last would stand for ever."""
    if job.status.phase == "Running" and job.status.progress:
        yield (), job.status.progress.tokens_per_second


def _mfu(job: Job) -> Iterator[Sample]:
    if job.status.phase == "Running" and job.status.progress:
        yield (), job.status.progress.mfu


def _device_seconds(job: Job) -> Iterator[Sample]:
    usage = job.status.usage
    if usage:
        yield ("productive",), usage.productive_device_seconds
        yield ("lost",), usage.lost_device_seconds
        yield ("overhead",), usage.overhead_device_seconds


def _checkpoint(job: Job) -> Iterator[Sample]:
    newest = job.status.latest_checkpoint
    yield (), _moment(newest.creation_time if newest else None)


def _checkpoint_interval(job: Job) -> Iterator[Sample]:
    """None where only steps are counted: how long they take is not known here."""
    own = job.spec.checkpoints
    default = None if own.interval_steps else _CHECKPOINT_INTERVAL
    yield (), own.interval_seconds or default


def _restarts(job: Job) -> Iterator[Sample]:
    yield (), job.status.restarts


def _restarts_by_cause(job: Job) -> Iterator[Sample]:
    """The status lists ten attempts; what came before them is known by its number only."""
    counts: dict[str, int] = {}
    for attempt in job.status.attempts[:-1]:
        if attempt.outcome in RESTARTED:
            cause = attempt.reason if attempt.reason in CAUSES else OTHER
            counts[cause or OTHER] = counts.get(cause or OTHER, 0) + 1
    earlier = job.status.restarts - sum(counts.values())
    if earlier > 0:
        counts[EARLIER] = earlier
    for cause, count in counts.items():
        yield (cause,), count


def _moment(time: datetime | None) -> float | None:
    return time.timestamp() if time else None


METRICS = (
    JobMetric(
        "finetune_job_phase",
        "1 for the phase that the job is in.",
        _phase,
        ("phase",),
    ),
    JobMetric(
        "finetune_job_progress_ratio",
        "Finished optimizer steps / all steps of the run.",
        _progress,
    ),
    JobMetric(
        "finetune_job_step_timestamp_seconds",
        "When the newest optimizer step ended, by the clock of worker 0.",
        _last_step,
    ),
    JobMetric(
        "finetune_job_running_timestamp_seconds",
        "When all workers of the attempt that runs now ran for the first time.",
        _running,
    ),
    JobMetric(
        "finetune_job_tokens_per_second",
        "Packed tokens of all devices, mean over the last minute of steps, while the job runs.",
        _tokens,
    ),
    JobMetric(
        "finetune_job_mfu_ratio",
        "FLOPs that the steps of the last minute need / the devices' peak, while the job runs.",
        _mfu,
    ),
    JobMetric(
        "finetune_job_device_seconds",
        "Seconds x devices from bound to a node to the container's end, of all attempts.",
        _device_seconds,
        ("kind",),
    ),
    JobMetric(
        "finetune_job_checkpoint_timestamp_seconds",
        "When the newest verified checkpoint was made, by the clock of worker 0.",
        _checkpoint,
    ),
    JobMetric(
        "finetune_job_checkpoint_interval_seconds",
        "Seconds between checkpoints that the job asks for.",
        _checkpoint_interval,
    ),
    JobMetric(
        "finetune_job_restarts_total",
        "Restarts of the job.",
        _restarts,
        family=CounterMetricFamily,
    ),
    JobMetric(
        "finetune_job_restarts_by_cause",
        "Restarts of the job by what ended the attempt before.",
        _restarts_by_cause,
        ("cause",),
    ),
)
