"""Metrics of jobs, computed from their statuses when Prometheus scrapes them.

They therefore cost nothing between scrapes, and a deleted job has none. Those of a job that has
ended are computed once. The number of series of a job is bounded: no label except its namespace and
name contains text of a user or a pod (docs/operate/monitoring.md).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from finetune_api.reasons import ending_attempts
from finetune_api.status import Attempt
from finetune_operator.jobs import Samples
from finetune_operator.plan import attempts
from finetune_operator.plan.observe import Job
from finetune_operator.queue import Key

Sample = tuple[tuple[str, ...], float | None]
"""The values of a metric's own labels, and the value; None if there is no sample."""
CAUSES = ending_attempts()
"""The reasons that are shown as the cause of a restart; all others are shown as OTHER."""
OTHER, EARLIER = "Other", "Earlier"


@dataclass(frozen=True)
class JobMetric:
    """A metric of jobs. Its first two labels are the namespace and the name of the job."""

    name: str
    help: str
    samples: Callable[[Job], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    family: type[CounterMetricFamily] | type[GaugeMetricFamily] = GaugeMetricFamily


def measure(job: Job) -> Samples:
    """Return the samples of a job: index in METRICS, values of the metric's labels, value."""
    return tuple(
        (index, labels, value)
        for index, metric in enumerate(METRICS)
        for labels, value in metric.samples(job)
        if value is not None and math.isfinite(value)
    )


def collect(jobs: Iterable[tuple[Key, Samples]]) -> Iterator[Metric]:
    """Yield all metrics of these jobs."""
    families = [m.family(m.name, m.help, labels=["namespace", "name", *m.labels]) for m in METRICS]
    for key, samples in jobs:
        for index, labels, value in samples:
            families[index].add_metric([*key, *labels], value)
    yield from families


# How the samples are read from a job


def _phase(job: Job) -> Iterator[Sample]:
    """Yield the current phase only: a series for each of the ten phases would add nothing."""
    if job.status.phase:
        yield (job.status.phase,), 1


def _progress(job: Job) -> Iterator[Sample]:
    progress = job.status.progress
    if progress and progress.total_steps > 0:
        yield (), progress.step / progress.total_steps


def _last_step(job: Job) -> Iterator[Sample]:
    progress = job.status.progress
    yield (), _timestamp(progress.last_update_time if progress else None)


def _running(job: Job) -> Iterator[Sample]:
    if job.status.phase == "Running" and job.status.attempts:
        yield (), _timestamp(job.status.attempts[-1].running_time)


def _measured(field: str) -> Callable[[Job], Iterator[Sample]]:
    """Yield a measurement of the newest steps while the job runs; the last would stay for ever."""

    def samples(job: Job) -> Iterator[Sample]:
        if job.status.phase == "Running" and job.status.progress:
            yield (), getattr(job.status.progress, field)

    return samples


def _validation(job: Job) -> Iterator[Sample]:
    if found := job.status.evaluation:
        yield ("baseline",), found.baseline
        yield ("last",), found.last
        yield ("best",), found.best


def _device_seconds(job: Job) -> Iterator[Sample]:
    usage = job.status.usage
    if usage:
        yield ("productive",), usage.productive_device_seconds
        yield ("lost",), usage.lost_device_seconds
        yield ("overhead",), usage.overhead_device_seconds


def _checkpoint(job: Job) -> Iterator[Sample]:
    newest = job.status.latest_checkpoint
    yield (), _timestamp(newest.creation_time if newest else None)


def _checkpoint_interval(job: Job) -> Iterator[Sample]:
    """Yield nothing if only steps are configured, because their duration is not known here."""
    yield (), job.spec.checkpoints.seconds_between


def _restarts(job: Job) -> Iterator[Sample]:
    yield (), job.status.restarts


def _restarts_by_cause(job: Job) -> Iterator[Sample]:
    """Count restarts by cause. The causes before the ten attempts in the status are not known."""
    counts = Counter(cause_of(attempt) for attempt in attempts.restarted(job.status))
    earlier = job.status.restarts - counts.total()
    if earlier > 0:
        counts[EARLIER] = earlier
    for cause, count in counts.items():
        yield (cause,), count


def cause_of(attempt: Attempt) -> str:
    """Return the reason of an attempt's end as the value of a label."""
    return attempt.reason if attempt.reason in CAUSES else OTHER


def _timestamp(time: datetime | None) -> float | None:
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
        _measured("tokens_per_second"),
    ),
    JobMetric(
        "finetune_job_mfu_ratio",
        "FLOPs that the steps of the last minute need / the devices' peak, while the job runs.",
        _measured("mfu"),
    ),
    JobMetric(
        "finetune_job_train_loss",
        "Training loss of the newest step in nats per trained token, while the job runs.",
        _measured("train_loss"),
    ),
    JobMetric(
        "finetune_job_validation_loss",
        "Validation loss in nats per trained token: before training, the newest and the lowest.",
        _validation,
        ("which",),
    ),
    JobMetric(
        "finetune_job_learning_rate",
        "Learning rate of the newest step, while the job runs.",
        _measured("learning_rate"),
    ),
    JobMetric(
        "finetune_job_gradient_norm",
        "L2 norm of the gradients of the newest step before clipping, while the job runs.",
        _measured("grad_norm"),
    ),
    JobMetric(
        "finetune_job_device_seconds",
        "Seconds x devices from bound to a node to the end of its last container, of all attempts.",
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
