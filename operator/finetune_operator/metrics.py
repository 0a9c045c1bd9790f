"""What the operator tells Prometheus: its own work as it is done, its jobs when somebody asks.

The parts are handed the small functions that count, and know nothing else of this. A replica that
does not lead tells of no job, so that each job has its series once.
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

from finetune_operator import job_metrics
from finetune_operator.plan.observe import Job
from finetune_operator.queue import Key, RetryError
from finetune_operator.status import Urgency

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

Look = Callable[[Key], Awaitable[float | None]]


@dataclass(frozen=True)
class View:
    """What is read off the parts at one moment."""

    waiting: int = 0  # keys in the queue
    longest: float = 0.0  # s that a worker has been on its key
    leading: bool = True
    lease: float | None = None  # s left of it; None: there is none
    jobs: Sequence[Job] = ()


class Metrics:
    """Counts, and makes the page that is scraped."""

    def __init__(self, view: Callable[[], View]) -> None:
        """`view` is called on the event loop, whenever somebody asks."""
        self._view = view
        self._registry = CollectorRegistry()
        # Else each has a second series, of its creation, that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._looks = Histogram(
            "finetune_operator_reconcile_duration_seconds",
            "How long one look at a job took, by its result: done, or to be repeated.",
            ["result"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._requests = Counter(
            "finetune_operator_api_requests_total",
            "Requests to the API server, by verb and HTTP status code; none: no answer came.",
            ["verb", "code"],
            registry=self._registry,
        )
        self._seen: dict[tuple[str, int | None], Counter] = {}  # twice as quick as asking `labels`
        self._writes = Counter(
            "finetune_operator_status_writes_total",
            "Statuses written, by what was new: facts, progress, or device seconds alone.",
            ["what"],
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        # A series that begins with its first event has lost that event for every rate.
        for result in ("done", "retry"):
            self._looks.labels(result)
        for what in _WRITTEN.values():
            self._writes.labels(what)

    def request(self, verb: str, code: int | None) -> None:
        """One was answered with this status; None: it was not answered."""
        series = self._seen.get((verb, code))
        if series is None:
            series = self._requests.labels(verb, "none" if code is None else str(code))
            self._seen[verb, code] = series
        series.inc()

    def write(self, urgency: Urgency) -> None:
        """A status was written."""
        self._writes.labels(_WRITTEN[urgency]).inc()

    def timed(self, look: Look) -> Look:
        """The same look, measured."""
        done, retry = self._looks.labels("done"), self._looks.labels("retry")

        async def measured(key: Key) -> float | None:
            begin = time.perf_counter()
            try:
                delay = await look(key)
            except RetryError:
                retry.observe(time.perf_counter() - begin)
                raise
            done.observe(time.perf_counter() - begin)
            return delay

        return measured

    async def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        # A thousand jobs take a tenth of a second to write down: not in the loop. What they are is
        # read here, where nothing changes meanwhile.
        return await asyncio.to_thread(self._write, self._view())

    def _write(self, view: View) -> bytes:
        now = CollectorRegistry()
        now.register(_Moment(view))
        return generate_latest(self._registry) + generate_latest(now)


_WRITTEN = {Urgency.NOW: "facts", Urgency.PROGRESS: "progress", Urgency.USAGE: "usage"}


class _Moment(Collector):
    """What is true now, as opposed to what was counted."""

    def __init__(self, view: View) -> None:
        self._view = view

    def describe(self) -> Iterator[Metric]:
        """Nothing: `collect` is called once, on a registry of its own."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        view = self._view
        yield _gauge("workqueue_depth", "Jobs that wait to be looked at.", view.waiting)
        yield _gauge(
            "workqueue_longest_running_seconds",
            "How long the longest look that goes on has taken so far.",
            view.longest,
        )
        yield _gauge("leading", "1 when this replica acts, 0 when it stands by.", view.leading)
        yield _gauge(
            "lease_remaining_seconds", "For how long the Lease is surely held.", view.lease
        )
        if view.leading:
            yield from job_metrics.collect(view.jobs)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(f"finetune_operator_{name}", text)
    if value is not None:
        family.add_metric([], value)
    return family
