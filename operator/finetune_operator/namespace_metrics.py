"""Counters of what happened to the jobs of a namespace, for sums that outlive the jobs.

The leader counts when it writes a status, by the difference to the status before. They begin at
zero when it starts, as counters do, and never decrease.
"""

from prometheus_client import CollectorRegistry, Counter

from finetune_api.status import FINISHED, FineTuneJobStatus, Usage
from finetune_operator.job_metrics import cause_of
from finetune_operator.plan import attempts


class NamespaceCounters:
    """The counters of all namespaces."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            name = f"finetune_operator_{name}"
            return Counter(name, text, ["namespace", *labels], registry=registry)

        self._ended = counter("jobs_ended", "Jobs that ended, since this replica leads.", "phase")
        self._restarts = counter(
            "restarts",
            "Restarts of jobs by what ended the attempt before, since this replica leads.",
            "cause",
        )
        self._seconds = {
            field: counter(name, text)
            for field, (name, text) in {
                "device_seconds": (
                    "device_seconds",
                    "Device seconds of all jobs, since this replica leads.",
                ),
                "productive_device_seconds": (
                    "productive_device_seconds",
                    "Device seconds of steps that no earlier attempt had finished.",
                ),
                "lost_device_seconds": (
                    "lost_device_seconds",
                    "Device seconds of steps that an earlier attempt had already finished.",
                ),
            }.items()
        }

    def count(self, namespace: str, old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
        """Count what has happened to a job between two statuses."""
        for phase in FINISHED:  # A rate would miss the first event of a series.
            self._ended.labels(namespace, phase)
        before, after = old.usage or Usage(), new.usage or Usage()
        for field, series in self._seconds.items():
            grown = getattr(after, field) - getattr(before, field)
            series.labels(namespace).inc(max(0, grown))  # A correction can be negative.
        if new.restarts > old.restarts and (ended := attempts.restarted(new)):
            cause = cause_of(ended[-1])
            self._restarts.labels(namespace, cause).inc(new.restarts - old.restarts)
        if new.finished and not old.finished:
            self._ended.labels(namespace, new.phase or "").inc()
