"""A cluster with one job and the operator under test: applies events, checks the invariants."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.base import Object
from tests.operator.simulator import events, invariants
from tests.operator.simulator.api import Crash, Wire
from tests.operator.simulator.clock import Clock
from tests.operator.simulator.controller import Controller
from tests.operator.simulator.events import Config, Event
from tests.operator.simulator.invariants import queries
from tests.operator.simulator.node import Nodes
from tests.operator.simulator.reports import SimulatedReports
from tests.operator.simulator.store import JOBS, PODS, Change, Store

KEY = ("default", "a")
_ROUNDS = 80


@dataclass
class Facts:
    """What the world knows about a job of some uid, to check the operator's status against."""

    restarts: int = 0  # attempts that followed a failure or a preemption
    suspended: bool = False  # spec.suspend was true at some time
    gone_at_call: int | None = None  # number of the API call during which it was deleted
    pods_vanished: bool = False  # a pod was removed whose status never had its end


@dataclass
class World:
    """One history."""

    config: Config
    clock: Clock = field(default_factory=Clock)
    facts: dict[str, Facts] = field(default_factory=lambda: defaultdict(Facts))
    blind: bool = False  # the operator, or a kubelet, may have missed an event
    away: bool = False
    unlabelled: bool = False  # a label was removed, so that no watch reports a pod
    edited: float = -1.0  # when the job was last edited or created
    # Uid, time and version of the operator's last status.
    last_write: tuple[str, float, int] = ("", -1.0, 0)
    late_pods: set[str] = field(default_factory=set)  # created after the client had given up
    over_since: dict[str, datetime] = field(default_factory=dict)  # by pod uid
    ended_at: dict[str, int] = field(default_factory=dict)  # version at which containers had ended
    # Version at which an attempt was ended or asked to stop, by the job's uid and its number.
    closed_at: dict[tuple[str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = Store(self.clock, self._changed)
        self.nodes = Nodes(self.store, self.clock, self.config.skews, pulls=self.config.pulls)
        self.wire = Wire(self.store, self.apply)
        claim = {"metadata": {"name": "w", "namespace": KEY[0]}}
        self.store.create("persistentvolumeclaims", claim)
        self.create_job()
        self.controller = self._start()
        self._rested: tuple[int, float, int] | None = None

    # The job

    @property
    def job(self) -> Object | None:
        return self.store.objects[JOBS].get(KEY[1])

    def create_job(self) -> None:
        if self.job:
            return
        self.edited = self.clock.seconds
        spec = self.config.spec()
        body = {"metadata": {"name": KEY[1], "namespace": KEY[0]}, "spec": spec}
        self.store.create(JOBS, body)

    def edit(self, spec: Object) -> None:
        """Edit the job as a user does, within the CRD's rules."""
        if self.job:
            self.edited = self.clock.seconds
            self.store.patch(JOBS, KEY[1], None, {"spec": spec})

    def condition(self, kind: str) -> str | None:
        job = self.job or {}
        found = job.get("status", {}).get("conditions", [])
        return next((c["status"] for c in found if c["type"] == kind), None)

    # The operator

    def _start(self) -> Controller:
        return Controller(self.wire, self.clock, SimulatedReports(self.nodes))

    def restart(self) -> None:
        """Kill the operator and start it again with empty caches."""
        self.blind = True
        self.controller.api.dead = True
        self.controller = self._start()

    def pull_reports(self, age: float = 0.0) -> None:
        own = self.controller
        own.reports.pull(own.jobs, own.pods, own.ready.add, age)

    async def work(self) -> None:
        """Let the operator do all it has to do now, through all its crashes."""
        while not self.away:
            try:
                await self.controller.work()
                return
            except Crash:
                self.restart()

    # Events

    def apply(self, event: Event) -> None:
        """Apply an event, possibly during one of the operator's API calls."""
        events.ACTIONS[event.what](self, event.value)

    async def step(self, event: Event) -> None:
        """Apply one event and let the operator react to it."""
        if event.what == "nothing":
            return
        if event.what in events.REPEATED:
            for again in events.REPEATED[event.what] * event.value:
                await self.step(again)
            return
        if event.what in ("wait", "train"):
            await self.wait(event.value)
        if event.what != "wait":
            self.apply(event)
            await self.work()
        await self._at_rest()

    async def wait(self, seconds: float) -> None:
        """Let time pass; the operator is woken when its timers are due."""
        until = self.clock.seconds + seconds
        while not self.away:
            await self.work()
            due = [*self.controller.timers.values(), *self.nodes.deadlines()]
            if min(due, default=until) >= until:
                break
            self.clock.seconds = max(self.clock.seconds, min(due))
            self.nodes.kill_overdue()
        self.clock.seconds = max(self.clock.seconds, until)
        self.nodes.kill_overdue()
        await self.work()

    async def _at_rest(self) -> None:
        own = self.controller
        if self.away or own.stalled or self.wire.disturbed:
            return
        here = (self.store.version, self.clock.seconds, id(own))
        if here == self._rested:
            return
        self._rested = here
        self._check("at rest", None)
        # Its own writes must not need another reconciliation: it has gone on from them already.
        moment, version = own.last_began
        changed = version != self.store.version and not self.store.by_operator
        if moment != self.clock.seconds or changed or KEY in own.soon:
            own.ready.add(KEY)
            await self.work()
        if KEY in own.soon:  # pods that it has just created
            own.ready.add(KEY)
            await self.work()
        if self.controller.failures or self.unlabelled:
            return  # it will try again after its back-off, or read pods again that no watch reports
        before = self.wire.writes
        own.ready.add(KEY)
        await self.work()
        if self.wire.writes != before:
            text = "the reconciliation of an unchanged world wrote something"
            raise invariants.BrokenError("a second reconciliation writes nothing", text)

    # The end

    async def run_to_the_end(self) -> None:
        """Stop all faults; the job must come to its end."""
        self.wire.repair()
        self.away = False
        self.controller.reports.unreachable = False
        self.controller.stalled.clear()
        await self.step(Event("go"))
        if self.store.webhook:
            await self.wait(70)  # until it was tried three times
        self._check("waiting", None)
        repairs = (("quota", None), ("webhook", None), ("claims", True), ("foreign service", False))
        for what, value in repairs:
            self.apply(Event(what, value))
        self.apply(Event("free"))
        self.apply(Event("storage", ""))
        for number in range(_ROUNDS):
            if number == 16 and self._needs_its_nodes():
                self._check("stuck", None)
                self.apply(Event("nodes recover"))
            # Only the operator's own timers wake it, so that a missing timer is detected.
            self.apply(Event("go"))
            await self.wait(5)
            self.nodes.train(save=True)
            if self._has_ended():
                break
            if number % 2:
                self.apply(Event("finish"))
            due = min(self.controller.timers.values(), default=0.0) - self.clock.seconds
            await self.wait(min(400.0, max(2.0, due)))
        self._check("run out", None)
        for what in ("nodes recover", "go", "go"):
            await self.step(Event(what))
        self._check("at the end", None)

    def _needs_its_nodes(self) -> bool:
        """Return whether the job cannot end before pods on lost nodes are removed.

        A suspended job waits for all its pods, and a name may be taken by an old pod.
        """
        job = self.job or {"spec": {}}
        status = job.get("status", {})
        taken = status.get("reason") in ("NameTaken", "WaitingForOldPods")
        return bool(job["spec"].get("suspend")) or "attempt" not in status or taken

    def _has_ended(self) -> bool:
        job = self.job
        if job is None:
            return not self.store.objects[PODS]
        if job.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return True
        return bool(job["spec"].get("suspend")) and self.condition("Suspended") == "True"

    # Checks

    def _changed(self, change: Change) -> None:
        """Record and check a write, of the operator or of any other client."""
        if change.plural == JOBS:
            self._remember(change)
            kind = "status written" if change.by_operator and change.after else None
        else:
            kind = {
                (True, False): "pod created",
                (False, True): "pod deleted",
                (False, False): "pod deleted",
            }.get((change.before is None, change.after is None))
            kind = kind if change.plural == PODS and change.by_operator else None
        if change.plural == PODS and change.before is None and change.after and change.late:
            self.late_pods.add(change.after["metadata"]["uid"])
        if change.plural == PODS:
            self._remember_pod(change.after or change.before or {}, gone=change.after is None)
        if kind:
            self._check(kind, change)

    def _remember_pod(self, pod: Object, *, gone: bool) -> None:
        uid = pod["metadata"]["uid"]
        if gone or not queries.runs(pod):
            self.over_since.setdefault(uid, self.clock.now())
        if queries.containers_ended(pod):
            self.ended_at.setdefault(uid, self.store.version)
        if gone and queries.exact_end(pod) is None:
            self.facts[queries.owner(pod)].pods_vanished = True

    def _remember(self, change: Change) -> None:
        item = change.after or change.before
        assert item
        facts = self.facts[item["metadata"]["uid"]]
        facts.suspended |= bool(item["spec"].get("suspend"))
        if change.after is None:
            facts.gone_at_call = self.wire.calls
            return
        old = (change.before or {}).get("status", {})
        new = item.get("status", {})
        for attempt in new.get("attempts", []):
            if queries.is_ending(attempt):
                gang = item["metadata"]["uid"], attempt["number"]
                self.closed_at.setdefault(gang, self.store.version)
        if new.get("attempts") and new.get("nextAttemptTime") and not old.get("nextAttemptTime"):
            facts.restarts += new["attempts"][-1].get("outcome") in ("Failed", "Preempted")

    def _check(self, when: str, change: Change | None) -> None:
        for invariant in invariants.BY_MOMENT[when]:
            if problem := invariant.check(self, change):
                raise invariants.BrokenError(invariant.sentence, problem)


async def _live(config: Config, history: list[Event]) -> World:
    world = World(config)
    await world.work()
    for event in history:
        await world.step(event)
    await world.run_to_the_end()
    return world


_LOOP: asyncio.AbstractEventLoop | None = None


def run(config: Config, history: list[Event]) -> World:
    """Run one history to the end of the job; raise BrokenError if it breaks an invariant."""
    global _LOOP
    if _LOOP is None:
        _LOOP = asyncio.new_event_loop()
    return _LOOP.run_until_complete(_live(config, history))
