"""The reports of running gangs, fetched when an event of the world says so."""

from collections.abc import Callable
from typing import Any

from finetune_api.base import Message
from finetune_api.run import Report
from finetune_operator.__main__ import running_gangs
from tests.operator.simulator.node import Nodes, Process


class SimulatedReports:
    """The methods of finetune_operator.reports.Reports that the reconciler uses."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._newest: dict[str, Report] = {}
        self.unreachable = False
        # Jobs, and their attempts, whose worker 0 ran at the last fetch.
        self.targets: set[tuple[str, int]] = set()

    def newest(self, job_uid: str, attempt: int | None) -> Report | None:
        report = self._newest.get(job_uid)
        return report if report and report.attempt == attempt else None

    def silent(self, job_uid: str, attempt: int | None) -> bool:
        return self.unreachable and (job_uid, attempt) in self.targets

    def drop(self, job_uid: str) -> None:
        self._newest.pop(job_uid, None)

    def pull(self, jobs: Any, pods: Any, notify: Callable[[Any], None], age: float = 0.0) -> None:
        """Fetch the report of worker 0 of every gang that runs according to the caches."""
        for target in running_gangs(jobs, pods, lambda _: True):
            if target.pod is None:
                self.targets.discard((target.job_uid, target.attempt))
                continue
            self.targets.add((target.job_uid, target.attempt))
            process = self._nodes.processes.get(target.pod.uid)
            if process and process.epoch is not None and not self.unreachable:
                self._newest[target.job_uid] = self._report(process, age)
            notify(target.key)

    def _report(self, process: Process, age: float) -> Report:
        records = self._nodes.runs[process.job_uid].records
        earlier = [
            {
                "attempt": number,
                "updateTime": when,
                "ledger": {
                    "productiveSeconds": productive,
                    "redoneSeconds": redone,
                    "highestStep": step,
                },
            }
            for number, (when, productive, redone, step) in records.items()
            if number < process.attempt
        ]
        values: dict[str, Any] = {
            "jobUid": process.job_uid,
            "attempt": process.attempt,
            "workerIndex": 0,
            "sequence": process.step,
            "stage": "Training" if process.exports_since is None else "Exporting",
            "stageSince": self._nodes.clock.now(),
            "activity": process.step,
            "activityAgeSeconds": age,
            "earlierAttempts": earlier[-10:],
            **self._nodes.progress_of(process),
        }
        message: Message = Report.model_validate(values)
        assert isinstance(message, Report)
        return message
