"""A cluster, one job, and the operator that is watched: applies events and checks what is true."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from finetune_api.base import Object
from tests.operator.simulator import events, invariants
from tests.operator.simulator.api import Crash, Wire
from tests.operator.simulator.clock import Clock
from tests.operator.simulator.controller import Controller
from tests.operator.simulator.events import Config, Event
from tests.operator.simulator.node import Nodes
from tests.operator.simulator.reports import SimulatedReports
from tests.operator.simulator.store import JOBS, PODS, Change, Store

KEY = ("default", "a")
_ROUNDS = 80


@dataclass
class Facts:
    """What the world remembers about a job, by uid, to judge the operator with."""

    restarts: int = 0  # attempts that followed a failure or a preemption
    suspended: bool = False  # spec.suspend was true at some time
    gone_at_call: int | None = None  # API call during which it was deleted
    pods_vanished: bool = False  # a pod went whose end no status ever told


@dataclass
class World:
    """One history."""

    config: Config
    clock: Clock = field(default_factory=Clock)
    facts: dict[str, Facts] = field(default_factory=lambda: defaultdict(Facts))
    blind: bool = False  # the operator, or a kubelet, may have missed something
    away: bool = False
    late_pods: set[str] = field(default_factory=set)  # by creations whose sender had given up

    def __post_init__(self) -> None:
        self.store = Store(self.clock, self._changed)
        self.nodes = Nodes(self.store, self.clock, self.config.skews)
        self.wire = Wire(self.store, self.happen)
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
        spec = self.config.spec()
        body = {"metadata": {"name": KEY[1], "namespace": KEY[0]}, "spec": spec}
        self.store.create(JOBS, body)

    def edit(self, spec: Object) -> None:
        """A user's edit, as the CRD's rules allow it."""
        if self.job:
            self.store.patch(JOBS, KEY[1], None, {"spec": spec})

    def condition(self, kind: str) -> str | None:
        job = self.job or {}
        found = job.get("status", {}).get("conditions", [])
        return next((c["status"] for c in found if c["type"] == kind), None)

    # The operator

    def _start(self) -> Controller:
        return Controller(self.wire, self.clock, SimulatedReports(self.nodes))

    def restart(self) -> None:
        """Killed and started again: empty caches."""
        self.blind = True
        self.controller.api.dead = True
        self.controller = self._start()

    def pull_reports(self, age: float = 0.0) -> None:
        own = self.controller
        own.reports.pull(own.jobs, own.pods, own.ready.add, age)

    async def work(self) -> None:
        """The operator does what it has to do now, through all its crashes."""
        while not self.away:
            try:
                await self.controller.work()
                return
            except Crash:
                self.restart()

    # Events

    def happen(self, event: Event) -> None:
        """Also in the middle of one of the operator's API calls."""
        events.ACTIONS[event.what](self, event.value)

    async def step(self, event: Event) -> None:
        """One event, and all that the operator makes of it."""
        if event.what == "nothing":
            return
        if event.what == "crash often":
            for again in events.CRASHES * event.value:
                await self.step(again)
            return
        if event.what in ("wait", "train"):
            await self.wait(event.value)
        if event.what != "wait":
            self.happen(event)
            await self.work()
        await self._at_rest()

    async def wait(self, seconds: float) -> None:
        """Time passes; the operator wakes up when it wanted to."""
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
        if self.away or own.stalled or self.wire.armed or self.wire.under_way:
            return
        here = (self.store.version, self.clock.seconds, id(own))
        if here == self._rested:
            return
        self._rested = here
        self._check("at rest", None)
        # What it wrote itself is no reason to look: it must have gone on from that already.
        moment, version = own.looked_at
        changed = version != self.store.version and not self.store.by_operator
        if moment != self.clock.seconds or changed or KEY in own.soon:
            own.ready.add(KEY)
            await self.work()
        if KEY in own.soon:  # of pods that it has just made
            own.ready.add(KEY)
            await self.work()
        if self.controller.failures:
            return  # it is told to try again
        before = self.wire.writes
        own.ready.add(KEY)
        await self.work()
        if self.wire.writes != before:
            text = "a second look at the same world wrote something"
            raise invariants.BrokenError("a second look writes nothing", text)

    # The end

    async def settle(self) -> None:
        """From here on nothing goes wrong any more: the job must come to its end."""
        self.wire.calm()
        self.away = False
        self.controller.reports.unreachable = False
        self.controller.stalled.clear()
        await self.step(Event("go"))
        self._check("waiting", None)
        for what, value in (("quota", None), ("claims", True), ("foreign service", False)):
            self.happen(Event(what, value))
        self.happen(Event("free"))
        for number in range(_ROUNDS):
            if number == 16 and self._needs_its_nodes():
                self._check("stuck", None)
                self.happen(Event("nodes recover"))
            # Nobody looks but the operator itself: a wake-up that it forgot is not made up for.
            self.happen(Event("go"))
            await self.wait(5)
            self.nodes.train(save=True)
            if self._settled():
                break
            if number % 2:
                self.happen(Event("finish"))
            due = min(self.controller.timers.values(), default=0.0) - self.clock.seconds
            await self.wait(min(400.0, max(2.0, due)))
        self._check("settled", None)
        for what in ("nodes recover", "go", "go"):
            await self.step(Event(what))
        self._check("at the end", None)

    def _needs_its_nodes(self) -> bool:
        """Of a suspended job no pod may be left, and names of pods may still be taken."""
        job = self.job or {"spec": {}}
        status = job.get("status", {})
        taken = status.get("reason") in ("NameTaken", "WaitingForOldPods")
        return bool(job["spec"].get("suspend")) or "attempt" not in status or taken

    def _settled(self) -> bool:
        job = self.job
        if job is None:
            return not self.store.objects[PODS]
        if job.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return True
        return bool(job["spec"].get("suspend")) and self.condition("Suspended") == "True"

    # Judgement

    def _changed(self, change: Change) -> None:
        """Every write, by whomever."""
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
        if change.plural == PODS and change.after is None and change.before:
            states = change.before["status"].get("containerStatuses") or [{}]
            if "terminated" not in states[0].get("state", {}):
                owner = change.before["metadata"].get("labels", {}).get("finetune.dev/job-uid", "")
                self.facts[owner].pods_vanished = True
        if kind:
            self._check(kind, change)

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
        if new.get("attempt", 0) > old.get("attempt", 0) > 0:
            ended = {a["number"]: a.get("outcome") for a in old["attempts"]}
            facts.restarts += ended[old["attempt"]] in ("Failed", "Preempted")

    def _check(self, when: str, change: Change | None) -> None:
        for invariant in invariants.BY_MOMENT[when]:
            if problem := invariant.check(self, change):
                raise invariants.BrokenError(invariant.sentence, problem)


async def _live(config: Config, history: list[Event]) -> World:
    world = World(config)
    await world.work()
    for event in history:
        await world.step(event)
    await world.settle()
    return world


_LOOP: asyncio.AbstractEventLoop | None = None


def run(config: Config, history: list[Event]) -> World:
    """One history from its beginning to the end of the job; raises what it broke."""
    global _LOOP
    if _LOOP is None:
        _LOOP = asyncio.new_event_loop()
    return _LOOP.run_until_complete(_live(config, history))
