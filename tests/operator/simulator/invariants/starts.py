"""The invariants of gangs that do not become complete, and of causes outside of the job."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from finetune_api.base import Object
from tests.operator.simulator.invariants.queries import (
    alive,
    attempt_of,
    attempts_of,
    disrupted,
    is_ending,
    newest_gang,
    own_pods,
    runs,
    short,
    state_of,
    statuses,
    uid_of,
)
from tests.operator.simulator.invariants.registry import invariant
from tests.operator.simulator.store import Change, identity

if TYPE_CHECKING:
    from tests.operator.simulator.world import World

OWN_FAILURES = (1, 75, 86, 87, 89, 137)
"""Exit codes that count although the gang was never complete."""
_DEADLINES = ("StartDeadlineExceeded", "ActiveDeadlineExceeded")
_NODES = ("UnexpectedAdmissionError", "OutOfcpu", "NodeAffinity", "Evicted")


def _closed(change: Change) -> list[Object]:
    """Return the attempts that this write ended."""
    old, new = statuses(change)
    ended = {a["number"] for a in old.get("attempts", []) if "outcome" in a}
    return [a for a in new.get("attempts", []) if "outcome" in a and a["number"] not in ended]


@invariant("status written", "a gang that was never complete counts only by a worker's own failure")
def _never_complete(world: "World", change: Change) -> str | None:
    for attempt in _closed(change):
        complete = (uid_of(change), attempt["number"]) in world.nodes.completed
        if complete or not attempt.get("counted"):
            continue
        if attempt.get("exitCode") not in OWN_FAILURES:
            return short(attempt)
    return None


@invariant("status written", "storage trouble is never counted")
def _storage(world: "World", change: Change) -> str | None:
    found = [a for a in _closed(change) if a.get("counted") and a.get("exitCode") in (69, 73)]
    return short(found[0]) if found else None


@invariant("status written", "a job fails by itself, by a deadline, or after a complete gang")
def _fails_for_a_reason(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    if new.get("phase") != "Failed" or old.get("phase") == "Failed":
        return None
    uid = uid_of(change)
    complete = any(job == uid for job, _ in world.nodes.completed)
    if complete or uid in world.nodes.failed or new.get("reason") in _DEADLINES:
        return None
    return f"{new.get('reason')}: {new.get('message')}"


@invariant("status written", "the back-off after what is not counted grows")
def _backs_off(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    at = new.get("nextAttemptTime")
    left = (datetime.fromisoformat(at) - world.clock.now()).total_seconds() if at else 0.0
    count = new.get("prepareInterruptions", 0)
    suspends = (change.after or {})["spec"].get("suspend")
    if count > old.get("prepareInterruptions", 0) and not suspends and left < _backoff(count):
        return f"interruption {count} of the prepare pod, and {left} s until the next one"
    for attempt in _closed(change):
        if attempt["outcome"] != "Released" or attempt["reason"] == "ConfigurationChanged":
            continue
        before = [a.get("outcome") for a in new["attempts"] if a["number"] <= attempt["number"]]
        count = next((n for n, o in enumerate(reversed(before)) if o != "Released"), len(before))
        if left < 0.5 * _backoff(count) - 1:
            return f"release {count} in a row, and {left} s until the next one: {short(attempt)}"
    return None


def _backoff(count: int) -> float:
    return min(300.0, 10.0 * 2 ** (count - 1))


@invariant("status written", "workers that wait for their peers do not hang")
def _no_hang(world: "World", change: Change) -> str | None:
    _, new = statuses(change)
    hung = [a for a in new.get("attempts", []) if a.get("stopReason") == "Hang"]
    found = [short(a) for a in hung if "runningTime" not in a]
    return found[0] if found else None


@invariant("status written", "a node that refused a pod is avoided")
def _avoided(world: "World", change: Change) -> str | None:
    _, new = statuses(change)
    names = {node["name"] for node in new.get("avoidedNodes", [])}
    for attempt in _closed(change):
        refused = attempt["outcome"] == "Released" and attempt["reason"] in _NODES
        if refused and attempt.get("node") and attempt["node"] not in names:
            return f"{attempt['node']} is not among {sorted(names)}"
    return None


def _starting(world: "World") -> tuple[Object | None, list[Object]]:
    """Return the attempt whose gang is not complete yet, and its pods that are not over."""
    attempts = attempts_of(world)
    if not world.job or not attempts or world.controller.failures or world.controller.soon:
        return None, []
    last = attempts[-1]
    if any(name in last for name in ("outcome", "stopReason", "runningTime")):
        return None, []
    pods = own_pods(world, world.job["metadata"]["uid"])
    return last, [p for p in pods if attempt_of(p) == last["number"] and runs(p)]


@invariant("at rest", "a half gang does not hold its nodes for longer than the timeout")
def _half_gang(world: "World", _: Any) -> str | None:
    attempt, pods = _starting(world)
    if attempt is None or not world.job:
        return None
    stuck = [p for p in pods if _is_stuck(p)]
    since = [_bound(p) for p in pods if p not in stuck and _bound(p)]
    if not stuck or not since:
        return None
    limit = world.job["spec"]["runPolicy"].get("gangStartTimeoutSeconds", 600)
    held = (world.clock.now() - min(s for s in since if s)).total_seconds()
    return f"held for {held} s: {short(attempt)}" if held > limit + 20 else None


def _is_stuck(pod: Object) -> bool:
    waits = state_of(pod).get("waiting", {}).get("reason") == "ImagePullBackOff"
    return waits or (_bound(pod) is None and "conditions" in pod["status"])


def _bound(pod: Object) -> datetime | None:
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "True":
            return datetime.fromisoformat(condition["lastTransitionTime"])
    return None


@invariant("at rest", "a gang that cannot become complete any more has ended")
def _cannot_start(world: "World", _: Any) -> str | None:
    attempt, pods = _starting(world)
    if attempt is None or not attempt.get("created"):
        return None
    ending = [p for p in pods if _is_asked(p)]
    return f"{ending[0]['metadata']['name']} ends: {short(attempt)}" if ending else None


def _is_asked(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"] or disrupted(pod)


@invariant("at rest", "a gang without a step does not wait for a worker that is asked to stop")
def _nothing_to_save(world: "World", _: Any) -> str | None:
    attempts, own = attempts_of(world), world.controller
    if not world.job or not attempts or is_ending(attempts[-1]) or own.failures or own.soon:
        return None
    last, uid = attempts[-1], world.job["metadata"]["uid"]
    report = own.reports.newest(uid, last["number"])
    known = report and not report.progress and not own.reports.silent(uid, last["number"])
    if not known or "lastStep" in last or "runningTime" not in last or world.unlabelled:
        return None
    asked = [p["metadata"]["name"] for p in newest_gang(world) if _is_asked(p) and alive(world, p)]
    return f"it waits for {asked[0]}: {short(last)}" if asked else None


@invariant("status written", "a gang that has made steps may save them while a worker has time to")
def _may_save(world: "World", change: Change) -> str | None:
    uid = uid_of(change)
    for attempt in _closed(change):
        if attempt.get("stopReason") or "exitCode" in attempt or "worker" not in attempt:
            continue
        for process in world.nodes.processes.values():
            own = (uid, attempt["number"]) == (process.job_uid, process.attempt)
            report = world.controller.reports.newest(uid, process.attempt)
            trained = process.step > process.first_step
            if not own or process.index or not trained or (report and report.progress):
                continue
            lost = [p for p in newest_gang(world) if identity(p)[1] == attempt["worker"]]
            if lost and _is_asked(lost[0]) and alive(world, lost[0]):
                return f"step {process.step}: {short(attempt)}"
    return None
