"""The metrics of the operator, which it counts as it works, and of its jobs.

The other parts receive the functions that count and know nothing else of this module. A replica
that does not lead shows no jobs, so that each job has its series only once. The series of a job end
some time after the job; the counters of namespaces go on.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from finetune_api.status import FineTuneJobStatus
from finetune_operator.job_metrics import collect, measure
from finetune_operator.jobs import Samples
from finetune_operator.namespace_metrics import NamespaceCounters
from finetune_operator.plan.observe import Job
from finetune_operator.queue import Key, RetryError
from finetune_operator.status import Urgency

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

Reconcile = Callable[[Key], Awaitable[float | None]]


@dataclass(frozen=True)
class Snapshot:
    """The state of the operator at one moment."""

    waiting: int = 0  # keys in the queue
    longest: float = 0.0  # s that the longest reconcile in progress has taken
    leading: bool = True
    lease: float | None = None  # s left of it; None: leader election is off
    jobs: Sequence[Job] = ()  # that go on
    ended: Sequence[tuple[Key, Samples]] = ()  # jobs that ended a short while ago


class Metrics:
    """Counts, and renders the page that Prometheus scrapes."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        """Call `snapshot` on the event loop for each scrape."""
        self._snapshot = snapshot
        self._registry = CollectorRegistry()
        # The library would add a series with the time of creation to each counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._reconciles = Histogram(
            "finetune_operator_reconcile_duration_seconds",
            "How long reconciling a job took, by result: done, or retry.",
            ["result"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._requests = Counter(
            "finetune_operator_api_requests_total",
            "Requests to the API server, by verb and HTTP status code; none: no response.",
            ["verb", "code"],
            registry=self._registry,
        )
        self._seen: dict[tuple[str, int | None], Counter] = {}  # twice as fast as `labels`
        self._writes = Counter(
            "finetune_operator_status_writes_total",
            "Statuses written, by what changed: facts, progress, or device seconds only.",
            ["what"],
            registry=self._registry,
        )
        self._of_namespaces = NamespaceCounters(self._registry)
        ProcessCollector(registry=self._registry)
        # A rate would miss the first event of a series that begins with it.
        for result in ("done", "retry"):
            self._reconciles.labels(result)
        for what in _WRITTEN.values():
            self._writes.labels(what)

    def request(self, verb: str, code: int | None) -> None:
        """Count a request by its verb and HTTP status, None if no response came."""
        series = self._seen.get((verb, code))
        if series is None:
            series = self._requests.labels(verb, "none" if code is None else str(code))
            self._seen[verb, code] = series
        series.inc()

    def write(self, urgency: Urgency, job: Job, new: FineTuneJobStatus) -> None:
        """Count a write of a status, and what has happened to the job according to it."""
        self._writes.labels(_WRITTEN[urgency]).inc()
        self._of_namespaces.count(job.namespace, job.status, new)

    def timed(self, reconcile: Reconcile) -> Reconcile:
        """Return the same function, with its duration measured."""
        done, retry = self._reconciles.labels("done"), self._reconciles.labels("retry")

        async def measured(key: Key) -> float | None:
            begin = time.perf_counter()
            try:
                delay = await reconcile(key)
            except RetryError:
                retry.observe(time.perf_counter() - begin)
                raise
            done.observe(time.perf_counter() - begin)
            return delay

        return measured

    async def page(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        # Rendering a thousand jobs takes a tenth of a second, so it is done in a thread. The state
        # is read here, because on the event loop nothing changes meanwhile.
        return await asyncio.to_thread(self._render, self._snapshot())

    def _render(self, snapshot: Snapshot) -> bytes:
        current = CollectorRegistry()
        current.register(_Current(snapshot))
        return generate_latest(self._registry) + generate_latest(current)


_WRITTEN = {
    Urgency.NOW: "facts",
    Urgency.PROGRESS: "progress",
    Urgency.HELD: "usage",
    Urgency.USAGE: "usage",
}


class _Current(Collector):
    """The gauges: what is true now, as opposed to what was counted."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: `collect` is called once, for a registry that is not kept."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield _gauge("workqueue_depth", "Jobs that wait to be reconciled.", snapshot.waiting)
        yield _gauge(
            "workqueue_longest_running_seconds",
            "How long the longest reconcile in progress has taken so far.",
            snapshot.longest,
        )
        yield _gauge("leading", "1 if this replica leads, 0 if it is a standby.", snapshot.leading)
        yield _gauge(
            "lease_remaining_seconds",
            "Seconds for which the Lease is certainly held.",
            snapshot.lease,
        )
        if snapshot.leading:
            current = (((job.namespace, job.name), measure(job)) for job in snapshot.jobs)
            yield from collect([*current, *snapshot.ended])


def _gauge(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(f"finetune_operator_{name}", text)
    if value is not None:
        family.add_metric([], value)
    return family
