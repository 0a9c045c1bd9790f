"""One run of the operator process: the real caches, empty at its start, and the real reconciler.

The world decides when watches deliver events, and the time is simulated.
"""

from dataclasses import dataclass, field
from typing import Any

from finetune_api.names import LABEL_JOB_UID
from finetune_operator import queue
from finetune_operator.events import Recorder
from finetune_operator.informer import Pods
from finetune_operator.jobs import Jobs
from finetune_operator.queue import Key, RetryError
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.status import Throttle
from tests.operator.simulator.api import Api, Wire
from tests.operator.simulator.clock import Clock
from tests.operator.simulator.store import JOBS, PODS

SETTINGS = Settings(trainer_image="trainer:1")
_MAX_RECONCILIATIONS = 60


@dataclass
class Controller:
    """The operator process. Watches in `stalled` deliver nothing until they flow or are cut."""

    wire: Wire
    clock: Clock
    reports: Any
    ready: set[Key] = field(default_factory=set)
    timers: dict[Key, float] = field(default_factory=dict)
    failures: dict[Key, int] = field(default_factory=dict)
    stalled: set[str] = field(default_factory=set)
    soon: set[Key] = field(default_factory=set)  # jobs with changes that a timer batches
    reconciliations: int = 0
    last_began: tuple[float, int] = (-1.0, 0)  # time and version when the last one began
    calls_before: int = 0  # calls made before the last reconciliation

    def __post_init__(self) -> None:
        self.began = self.clock.seconds
        self.api = Api(self.wire)
        self.pods = Pods(
            self.ready.add, self._soon, lambda uid: self.jobs.knows(uid), self.clock.now
        )
        self.jobs = Jobs(self.ready.add, self._removed)
        self.recorder = Recorder(self.api)
        self.reconciler = Reconciler(
            self.api,
            self.jobs,
            self.pods,
            self.reports,
            self.recorder,
            SETTINGS,
            Throttle(SETTINGS.progress_write_interval),
            self.clock.now,
            lambda: self.clock.seconds,
        )
        self.cursor = {PODS: 0, JOBS: 0}
        self.first_version = self.wire.store.version
        self.missed = False  # a watch was cut, so that deletions may have been missed
        self.relist(PODS)
        self.relist(JOBS)
        self.wire.deliver = self.deliver

    def _soon(self, key: Key) -> None:
        at = self.clock.seconds + queue.TOGETHER
        self.timers[key] = min(self.timers.get(key, at), at)
        self.soon.add(key)

    def _removed(self, uid: str) -> None:
        self.pods.forget(uid)
        self.reports.drop(uid)

    def relist(self, plural: str) -> None:
        """List the objects again, as after a start or an expired watch, which miss deletions."""
        store = self.wire.store
        self.stalled.discard(plural)
        self.cursor[plural] = len(store.log[plural])
        if plural == PODS:
            self.pods.replace(store.list(PODS, LABEL_JOB_UID))
            return
        for job in store.list(JOBS):
            self.jobs.take(job)

    def deliver(self) -> None:
        """Take every event that the watches have."""
        for plural in (PODS, JOBS):
            log = self.wire.store.log[plural]
            start = self.cursor[plural]
            if start == len(log) or plural in self.stalled:
                continue
            self.cursor[plural] = len(log)
            for kind, item in log[start:]:
                self._take(plural, kind, item)

    def _take(self, plural: str, kind: str, item: dict[str, Any]) -> None:
        metadata = item["metadata"]
        if plural == PODS:
            (self.pods.deleted if kind == "DELETED" else self.pods.take)(item)
        elif kind == "DELETED":
            self.jobs.remove((metadata["namespace"], metadata["name"]), metadata["uid"])
        else:
            self.jobs.take(item)

    async def work(self) -> None:
        """Reconcile until nothing is left to do at this moment."""
        for _ in range(_MAX_RECONCILIATIONS):
            self.deliver()
            for key in [k for k, at in self.timers.items() if at <= self.clock.seconds]:
                del self.timers[key]
                self.ready.add(key)
            if not self.ready:
                return
            await self._handle(self.ready.pop())
        raise AssertionError(
            f"does not come to rest: more than {_MAX_RECONCILIATIONS} reconciliations at one moment"
        )

    async def _handle(self, key: Key) -> None:
        """Reconcile one job as finetune_operator.queue.Queue does."""
        self.soon.discard(key)
        self.reconciliations, self.calls_before = self.reconciliations + 1, self.wire.calls
        self.last_began = (self.clock.seconds, self.wire.store.version)
        try:
            delay = await self.reconciler.reconcile(key)
            self.failures.pop(key, None)
        except RetryError:
            failures = self.failures[key] = self.failures.get(key, 0) + 1
            delay = min(queue._LONGEST, queue._FIRST * 2 ** min(failures, 10))
        # In the operator a task of its own does this; here the order of the calls is to be the same
        # in every run of a history.
        await self.recorder.flush()
        if delay is not None:
            self.timers[key] = min(self.timers.get(key, 1e12), self.clock.seconds + delay)
