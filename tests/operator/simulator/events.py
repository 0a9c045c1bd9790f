"""The events that may happen in a history. Each is one value, which a pinned test can repeat."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from finetune_api import names
from finetune_api.base import Object
from tests.operator import worlds
from tests.operator.simulator.api import FAULTS, BeforeResponse
from tests.operator.simulator.store import JOBS, PODS

if TYPE_CHECKING:
    from tests.operator.simulator.world import World

OWN_FAILURES = (1, 64, 65, 73, 75, 78, 86, 87, 89, 137)
"""Exit codes by which a process, also one of a prepare pod, may end a job by itself."""


@dataclass(frozen=True)
class Event:
    """An event. `value` is a pod's position in the list of pods, seconds, or other arguments."""

    what: str
    value: Any = None

    def __repr__(self) -> str:
        return f"Event({self.what!r}" + (f", {self.value!r})" if self.value is not None else ")")


@dataclass(frozen=True)
class Config:
    """The job that a history is about, and the clocks of its nodes."""

    replicas: int = 2
    devices: int = 2
    sidecar: bool = False
    pulls: tuple[int | None, ...] = ()  # s that the image takes, by worker index; None: for ever
    skews: tuple[int, ...] = (0,)  # s by which the clocks of nodes are ahead, by worker index
    policy: tuple[tuple[str, Any], ...] = field(default=())

    def spec(self) -> Object:
        workers: Object = {"replicas": self.replicas, "devicesPerWorker": self.devices}
        if self.sidecar:
            workers["template"] = {"spec": {"containers": [{"name": "side", "image": "side:1"}]}}
        policy = {"terminationGracePeriodSeconds": 30, **dict(self.policy)}
        prepare = {"prepare": {"template": workers["template"]}} if self.sidecar else {}
        return worlds.make_spec(workers=workers, runPolicy=policy, **prepare)


CONFIGS = (
    Config(),
    Config(replicas=1),
    Config(replicas=3, devices=1),
    Config(sidecar=True),
    Config(policy=(("maxRestarts", 1),)),
    Config(policy=(("maxRestarts", 0),)),
    Config(policy=(("maxRestarts", 100),)),
    Config(policy=(("cleanPodPolicy", "All"), ("ttlSecondsAfterFinished", 100))),
    Config(policy=(("cleanPodPolicy", "None"),), sidecar=True),
    Config(policy=(("activeDeadlineSeconds", 300),)),
    Config(policy=(("startDeadlineSeconds", 60),)),
    Config(policy=(("gangStartTimeoutSeconds", 60),)),
    Config(policy=(("progressDeadlineSeconds", 60),), replicas=3),
    Config(replicas=24, devices=1),
    Config(pulls=(200, 0)),
    Config(pulls=(0, 200, 0), replicas=3, policy=(("progressDeadlineSeconds", 60),)),
    Config(pulls=(0, None), policy=(("gangStartTimeoutSeconds", 60),)),
    Config(skews=(-150, 90)),
    Config(skews=(200, -20), policy=(("maxRestarts", 100),)),
    Config(skews=(0, -240, 35), replicas=3, devices=1),
)


def _pod(world: "World", place: int) -> Object | None:
    pods = world.nodes.pods()
    return pods[place % len(pods)] if pods else None


def _to_pod(name: str) -> "Action":
    """Return an action that calls a method of the node model with one pod."""

    def action(world: "World", place: int) -> None:
        if pod := _pod(world, place):
            getattr(world.nodes, name)(pod)

    return action


def _lose(world: "World", place: int) -> None:
    if pod := _pod(world, place):
        world.blind = True
        world.nodes.lose(pod)


def _bind_to_dead_node(world: "World", place: int) -> None:
    if pod := _pod(world, place):
        world.blind = True
        world.nodes.bind_to_dead_node(pod)


def _go(world: "World", _: Any) -> None:
    world.clock.seconds += 1
    world.nodes.round()


def _wait(world: "World", seconds: float) -> None:
    world.clock.seconds += seconds


def _unlabel(world: "World", value: tuple[int, bool]) -> None:
    """Remove the label by which the watch selects pods, or all labels of the operator."""
    place, everything = value
    if pod := _pod(world, place):
        world.blind = world.unlabelled = True
        removed = names.POD_LABELS if everything else (names.LABEL_JOB_UID,)
        labels = pod["metadata"].get("labels", {})
        world.store.label(pod, {k: v for k, v in labels.items() if k not in removed})


def _train(world: "World", _: float) -> None:
    world.nodes.train(save=True)
    if not world.away:
        world.pull_reports()


def _exit(world: "World", value: tuple[int, int, bool]) -> None:
    place, code, reported = value
    pod = _pod(world, place)
    process = world.nodes.processes.get(pod["metadata"]["uid"]) if pod else None
    if process and (code != 0 or not process.attempt):
        if code in OWN_FAILURES or (not process.attempt and code != 69):
            world.nodes.failed.add(process.job_uid)
        world.nodes.exit(process, code, reported=reported)


def _storage(world: "World", what: str) -> None:
    world.nodes.storage = what


def _cut_messages(world: "World", most: int) -> None:
    """Let kubelets keep less of termination messages, as they do for pods of many containers."""
    world.nodes.message_bytes = most


def _delete_pod(world: "World", value: tuple[int, int | None]) -> None:
    place, grace = value
    if pod := _pod(world, place):
        body = {} if grace is None else {"gracePeriodSeconds": grace}
        world.store.delete(PODS, pod["metadata"]["name"], body)


def _report(world: "World", what: str) -> None:
    reports = world.controller.reports
    reports.unreachable = what == "unreachable"
    if not world.away:
        world.pull_reports(100_000.0 if what == "hangs" else 0.0)


def _watch(world: "World", value: tuple[str, str]) -> None:
    plural, what = value
    if what == "stall":
        world.blind = True
        world.controller.stalled.add(plural)
    elif what == "flow":
        world.controller.stalled.discard(plural)
    else:
        world.blind = world.controller.missed = True
        world.controller.relist(plural)


def _away(world: "World", away: bool) -> None:
    if away:
        world.blind = True
    elif world.away:
        world.restart()
    world.away = away


def _suspend(world: "World", value: bool) -> None:
    world.edit({"suspend": value})


def _delete_job(world: "World", recreate: bool) -> None:
    if world.job:
        world.store.delete(JOBS, "a", {})
    if recreate:
        world.create_job()


def _scale(world: "World", replicas: int) -> None:
    """Edit the number of workers, which the CRD allows only while the job is Suspended."""
    if world.condition("Suspended") == "True":
        world.edit({"workers": {"replicas": replicas}})


def _model(world: "World", source: str) -> None:
    """Edit the model, which the CRD allows only before the first commit."""
    if world.job and "attempt" not in world.job.get("status", {}):
        world.edit({"model": {"source": source}})


def _policy(world: "World", value: tuple[str, Any]) -> None:
    world.edit({"runPolicy": dict([value])})


def _interval(world: "World", value: tuple[str, int]) -> None:
    """Edit an interval of the training loop, which the CRD allows at any time."""
    part, steps = value
    world.edit({part: {"intervalSteps": steps}})


def _quota(world: "World", pods: int | None) -> None:
    world.store.quota = pods
    world.store.version += 1
    world.store.quota_set = world.store.version
    world.store.by_operator = False


def _webhook(world: "World", code: int | None) -> None:
    world.store.webhook = code
    world.store.version += 1
    world.store.by_operator = False


def _freeze(world: "World", seconds: float) -> None:
    """Stop the process of the API server for a while, without closing its connections."""
    world.blind = True
    world.wire.frozen_until = world.clock.seconds + seconds


def _claims(world: "World", present: bool) -> None:
    _present(world, "persistentvolumeclaims", "w", present)


def _foreign_service(world: "World", present: bool) -> None:
    found = world.store.objects["services"].get("a")
    if found and found["metadata"].get("ownerReferences"):
        return
    _present(world, "services", "a", present)


def _present(world: "World", plural: str, name: str, present: bool) -> None:
    there = name in world.store.objects[plural]
    if present and not there:
        world.store.create(plural, {"metadata": {"name": name, "namespace": "default"}})
    elif there and not present:
        world.store.delete(plural, name, {})


def _at_call(world: "World", value: tuple[int, Any]) -> None:
    calls, what = value
    if isinstance(what, str):
        what = FAULTS[what]
        world.blind = True
    world.wire.schedule(calls, what)


Action = Callable[["World", Any], None]
ACTIONS: dict[str, Action] = {
    "nothing": lambda world, _: None,
    "go": _go,
    "wait": _wait,
    "train": _train,
    "finish": lambda world, _: world.nodes.finish(),
    "export ends": lambda world, _: world.nodes.end_exports(),
    "ended pods are collected": lambda world, _: world.nodes.collect_ended(),
    "exit": _exit,
    "ends are reported": lambda world, _: [
        world.nodes.report(uid) for uid in list(world.nodes.unreported)
    ],
    "unschedulable": _to_pod("unschedulable"),
    "image missing": _to_pod("image_missing"),
    "start": _to_pod("start"),
    "free": lambda world, _: world.nodes.free(),
    "bind to a dead node": _bind_to_dead_node,
    "storage": _storage,
    "messages are cut": _cut_messages,
    "mount fails": _to_pod("mount_fails"),
    "preempt": _to_pod("preempt"),
    "evict": _to_pod("evict"),
    "refuse": _to_pod("refuse"),
    "lose container": _to_pod("lose_container"),
    "collect": _to_pod("collect"),
    "unlabel": _unlabel,
    "delete pod": _delete_pod,
    "lose node": _lose,
    "lost nodes are noticed": lambda world, _: world.nodes.notice(),
    "delete node": _to_pod("delete_node"),
    "nodes recover": lambda world, _: world.nodes.recover(),
    "report": _report,
    "watch": _watch,
    "restart operator": lambda world, _: world.restart(),
    "operator away": _away,
    "late effects arrive": lambda world, _: world.wire.arrive(),
    "suspend": _suspend,
    "delete job": _delete_job,
    "create job": lambda world, _: world.create_job(),
    "scale": _scale,
    "edit model": _model,
    "edit policy": _policy,
    "edit interval": _interval,
    "quota": _quota,
    "webhook": _webhook,
    "freeze": _freeze,
    "claims": _claims,
    "foreign service": _foreign_service,
    "at call": _at_call,
}

_PLACES = range(3)
_RUNS = [Event("go")] * 3
# World.step takes the steps of these one by one, as often as the value of the event says.
REPEATED: dict[str, tuple[Event, ...]] = {
    "crash often": (Event("go"), Event("exit", (1, 1, True)), Event("go"), Event("wait", 400)),
    "evict often": (Event("start", 0), Event("evict", 0), Event("wait", 11)),
    "delete often": (Event("delete pod", (0, 0)), Event("wait", 3)),
    "refuse often": (Event("refuse", 1), Event("go"), Event("wait", 400)),
    "fill often": (
        Event("storage", "full"),
        *_RUNS,
        Event("finish"),
        Event("go"),
        Event("wait", 400),
    ),
    "give up often": (Event("start", 0), Event("exit", (0, 88, True)), Event("wait", 400)),
}
_CODES = (1, 64, 69, 73, 75, 78, 79, 86, 87, 88, 89, 137)
_WORLD = [
    *(Event("exit", (place, code, True)) for place in _PLACES for code in _CODES),
    *(Event("exit", (place, code, False)) for place in _PLACES for code in (1, 75, 137)),
    *(Event("exit", (0, code, True)) for code in (0, 0, 65)),
    *(Event("ends are reported") for _ in range(3)),
    *(
        Event(what, place)
        for place in _PLACES
        for what in (
            *("unschedulable", "image missing", "preempt", "evict", "start", "start"),
            *("refuse", "lose container"),
        )
    ),
    *(Event("lose node", place) for place in _PLACES for _ in range(2)),
    *(Event("delete node", place) for place in _PLACES for _ in range(2)),
    *(Event("collect", place) for place in _PLACES),
    *(Event("delete pod", (place, grace)) for place in _PLACES for grace in (None, 0)),
    *(Event("lost nodes are noticed") for _ in range(3)),
    *(Event("unlabel", (place, everything)) for place in _PLACES for everything in (True, False)),
    *(Event("mount fails", place) for place in _PLACES),
    Event("nodes recover"),
    *(Event("messages are cut", most) for most in (560, 4096)),
    *(Event("export ends") for _ in range(3)),
    *(Event("ended pods are collected") for _ in range(2)),
    Event("free"),
    Event("free"),
    *(Event("bind to a dead node", place) for place in _PLACES),
    *(Event("storage", what) for what in ("full", "in use", "", "")),
]
_USER = [
    *(Event("suspend", value) for value in (True, True, False, False, False)),
    *(Event("delete job", recreate) for recreate in (True, True, False)),
    Event("create job"),
    *(Event("scale", replicas) for replicas in (1, 2, 3)),
    Event("edit model", "pvc://w/other"),
    *(Event("edit policy", ("maxRestarts", most)) for most in (1, 5)),
    Event("edit policy", ("activeDeadlineSeconds", 10)),
    *(Event("edit interval", (part, 7)) for part in ("checkpoints", "evaluation")),
    Event("edit interval", ("evaluation", 9)),
    *(Event("quota", pods) for pods in (0, 1, 2, None)),
    *(Event("webhook", code) for code in (500, 503, 404, None, None)),
    *(Event(what, value) for what in ("claims", "foreign service") for value in (True, False)),
]
_OPERATOR = [
    *(Event("report", what) for what in ("fresh", "hangs", "unreachable")),
    *(
        Event("watch", (plural, what))
        for plural in (PODS, JOBS)
        for what in ("stall", "stall", "flow", "cut")
    ),
    Event("restart operator"),
    *(Event("operator away", away) for away in (True, False, False)),
    Event("late effects arrive"),
    *(Event("freeze", seconds) for seconds in (5, 30, 120)),
]
_RACES = [event for event in (*_WORLD[::3], *_USER) if event.what != "start"]
_FAULTS = [
    *(Event("at call", (call, name)) for call in (1, 2, 3, 4, 5, 6, 8, 10) for name in FAULTS),
    *(Event("at call", (call, event)) for call in (2, 3, 4, 6) for event in _RACES),
    *(
        Event("at call", (call, BeforeResponse(event)))
        for call in (1, 2, 5)
        for event in _RACES[::2]
    ),
    *(Event("at call", (c, BeforeResponse(Event("delete job", True)))) for c in range(1, 9)),
]


def _weighted(events: list[Event], share: int) -> list[Event]:
    """Return the events, repeated to about `share` thousandths of the catalogue."""
    return events * max(1, round(share * 10 / len(events)))


# The simplest events come first, because hypothesis shrinks towards the start of the list.
CATALOGUE = [
    Event("nothing"),
    *_weighted([Event("go")], 280),
    *_weighted([Event("train", 20), Event("train", 200), Event("finish")], 110),
    *_weighted([Event("wait", seconds) for seconds in (1, 3, 12, 30, 70, 400, 900)], 90),
    *_weighted([Event("crash often", 11)], 1),
    *(Event(what, 6) for what in REPEATED if what != "crash often"),
    *_weighted(_WORLD, 220),
    *_weighted(_USER, 80),
    *_weighted(_OPERATOR, 60),
    *_weighted(_FAULTS, 160),
]
# Most histories of interest need a gang that runs.
STARTS: tuple[list[Event], ...] = ([], _RUNS, [*_RUNS, Event("train", 20)])
HISTORIES = st.builds(
    list.__add__,
    st.sampled_from(STARTS),
    st.lists(st.sampled_from(CATALOGUE), min_size=8, max_size=40),
)


def readable(config: Config, history: list[Event]) -> str:
    """Return the history as the source of a pinned test."""
    lines = "".join(f"        {event!r},\n" for event in history if event.what != "nothing")
    return f"run(\n    {config!r},\n    [\n{lines}    ],\n)"
