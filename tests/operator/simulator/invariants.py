"""What must stay true in every history. Each is a sentence and a check.

A check returns what is wrong, or None. Those of a write see the object before and after it; the
server's state is the one after it.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from finetune_api import names
from finetune_operator.plan.observe import LOST
from tests.operator.simulator.store import JOBS, PODS, Change, Object, size

if TYPE_CHECKING:
    from tests.operator.simulator.world import World

Check = Callable[["World", Any], str | None]
MOMENTS = (
    "status written",
    "pod created",
    "pod deleted",
    "at rest",
    "waiting",  # faults have ceased, the world is as it was
    "stuck",  # everything was done but for lost nodes, and they did not come back
    "settled",  # the same, and the job needs no node back
    "at the end",
)
_FINISHED = ("Succeeded", "Failed")
_TERMINAL = ("Succeeded", "Failed")
_AGAIN = ("Failed", "Preempted")


class BrokenError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, sentence: str, problem: str) -> None:
        super().__init__(f"{sentence}: {problem}")
        self.sentence = sentence


@dataclass(frozen=True)
class Invariant:
    """`moment` is when it is looked at."""

    sentence: str
    moment: str
    check: Check


BY_MOMENT: dict[str, list[Invariant]] = defaultdict(list)


def always(moment: str, sentence: str) -> Callable[[Check], Check]:
    """Add a check to the list."""
    assert moment in MOMENTS

    def add(check: Check) -> Check:
        BY_MOMENT[moment].append(Invariant(sentence, moment, check))
        return check

    return add


# When a status is written


@always("status written", "every status write names the version it was planned from")
def _guarded(world: "World", change: Change) -> str | None:
    sent = (change.body or {}).get("metadata", {})
    missing = {"resourceVersion", "uid"} - set(sent)
    return f"the patch lacks {sorted(missing)}" if missing else None


@always("status written", "a finished job never changes")
def _final(world: "World", change: Change) -> str | None:
    old, new = _statuses(change)
    if old.get("phase") not in _FINISHED or old == new:
        return None
    return f"{old['phase']} {old.get('reason')} -> {new.get('phase')} {new.get('reason')}"


@always("status written", "a finished job has exactly one of Succeeded and Failed, others none")
def _one_outcome(world: "World", change: Change) -> str | None:
    _, new = _statuses(change)
    true = [c["type"] for c in new["conditions"] if c["status"] == "True"]
    found = [kind for kind in true if kind in _FINISHED]
    wanted = [new["phase"]] if new["phase"] in _FINISHED else []
    return f"phase {new['phase']} with conditions {found}" if found != wanted else None


@always("status written", "the next attempt begins when every pod of those before is over")
def _never_two_gangs(world: "World", change: Change) -> str | None:
    old, new = _statuses(change)
    if new.get("attempt") == old.get("attempt"):
        return None
    if new["attempt"] != old.get("attempt", 0) + 1:
        return f"attempt {old.get('attempt')} -> {new['attempt']}"
    alive = [p["metadata"]["name"] for p in _gang_pods(world, _uid(change)) if _alive(world, p)]
    return f"attempt {new['attempt']} while {alive} live" if alive else None


@always("status written", "a suspended job holds no pod")
def _suspended_is_empty(world: "World", change: Change) -> str | None:
    left = [p["metadata"]["name"] for p in _own_pods(world, _uid(change))]
    return f"{left} exist" if left and _true(change.after, "Suspended") else None


@always("status written", "restarts are the attempts that followed a failure or a preemption")
def _restarts(world: "World", change: Change) -> str | None:
    old, new = _statuses(change)
    if new.get("restarts", 0) < old.get("restarts", 0):
        return f"{old['restarts']} -> {new['restarts']}"
    wanted = world.facts[_uid(change)].restarts
    found = new.get("restarts", 0)
    return f"{found} instead of {wanted}" if found != wanted else None


@always("status written", "counted restarts grow one by one, by attempts that count, to the limit")
def _counted(world: "World", change: Change) -> str | None:
    old, new = _statuses(change)
    grown = new.get("countedRestarts", 0) - old.get("countedRestarts", 0)
    if grown <= 0:
        return None
    last = new["attempts"][-1]
    if grown > 1 or not last.get("counted"):
        return f"grew by {grown} with attempt {last['number']} counted={last.get('counted')}"
    most = (change.before or {})["spec"]["runPolicy"].get("maxRestarts", 3)
    if new["countedRestarts"] > most and new.get("nextAttemptTime"):
        return f"{new['countedRestarts']} of {most} and another attempt follows"
    return None


@always("status written", "preemption with a checkpoint, suspension and release never count")
def _what_counts(world: "World", change: Change) -> str | None:
    old, new = _statuses(change)
    closed = {a["number"] for a in old.get("attempts", []) if "outcome" in a}
    for attempt in new.get("attempts", []):
        if attempt["number"] in closed:
            continue  # a step that became known later counts no more
        outcome, counted = attempt.get("outcome"), attempt.get("counted")
        if outcome in ("Suspended", "Released") and counted:
            return f"attempt {attempt['number']} {outcome} counts"
        if outcome == "Preempted" and counted and _progressed(new, attempt):
            return f"attempt {attempt['number']} was preempted with progress and counts"
    return None


@always("status written", "how an attempt ended never changes")
def _ended_stays(world: "World", change: Change) -> str | None:
    old, new = _statuses(change)
    known = {a["number"]: a for a in new.get("attempts", [])}
    for before in old.get("attempts", []):
        after = known.get(before["number"])
        if after is None or "outcome" not in before:
            continue
        for field in ("outcome", "reason", "counted", "exitCode", "stopReason"):
            if before.get(field) != after.get(field):
                number = before["number"]
                return f"{number}.{field}: {before.get(field)} -> {after.get(field)}"
    return None


@always("status written", "a stop that was asked for stays written")
def _stop_stays(world: "World", change: Change) -> str | None:
    old, new = _statuses(change)
    if not old.get("attempts") or not old["attempts"][-1].get("stopReason"):
        return None
    known = {a["number"]: a.get("stopReason") for a in new["attempts"]}
    number, reason = old["attempts"][-1]["number"], old["attempts"][-1]["stopReason"]
    return f"{reason} -> {known[number]}" if known.get(number, reason) != reason else None


@always("status written", "usage adds up: parts to the total, attempts to the sum")
def _adds_up(world: "World", change: Change) -> str | None:
    _, new = _statuses(change)
    usage = new.get("usage")
    if usage is None:
        return None
    parts = [usage[f"{part}DeviceSeconds"] for part in ("productive", "lost", "overhead")]
    attempts = [*new["attempts"], *([new["foldedAttempts"]] if "foldedAttempts" in new else [])]
    total = sum(a["deviceSeconds"] for a in attempts)
    if min(parts) < 0 or sum(parts) != usage["deviceSeconds"] or total != usage["deviceSeconds"]:
        return f"{usage}, attempts {[a['deviceSeconds'] for a in attempts]}"
    return None


@always("status written", "usage never shrinks, and settled sums change by a correction only")
def _monotone(world: "World", change: Change) -> str | None:
    old, new = _statuses(change)
    known = {a["number"]: a for a in new.get("attempts", [])}
    for before in old.get("attempts", []):
        after = known.get(before["number"], before)
        shrinks = after["deviceSeconds"] < before["deviceSeconds"]
        # Settling replaces what was charged up to our look by what the kubelet said later.
        if shrinks and (before.get("settled") or not after.get("settled")):
            return f"attempt {before['number']} {before['deviceSeconds']} -> {_short(after)}"
        changed = after["deviceSeconds"] != before["deviceSeconds"]
        corrected = after.get("corrected") and not before.get("corrected")
        if before.get("settled") and changed and not corrected:
            return f"attempt {before['number']} settled: {_short(before)} -> {_short(after)}"
    return None


@always("status written", "a status fits into 32 kB")
def _small(world: "World", change: Change) -> str | None:
    _, new = _statuses(change)
    return f"{size(new)} bytes" if size(new) > 32 * 1024 else None


@always("status written", "every phase but Running says why in a sentence")
def _speaks(world: "World", change: Change) -> str | None:
    _, new = _statuses(change)
    return f"phase {new.get('phase')} without a message" if not new.get("message") else None


# When the operator creates or deletes a pod


@always("pod created", "a pod is made only for the attempt that is committed and goes on")
def _no_stale_plan(world: "World", change: Change) -> str | None:
    assert change.after
    uid, number = _label(change.after, names.LABEL_JOB_UID), _attempt(change.after)
    job, gone = world.job, world.facts[uid].gone_at_call
    if change.late:
        return None
    if gone is not None:
        stale = gone < world.controller.look_began
        return "the job was gone before the look began" if stale else None
    status = (job or {}).get("status", {})
    if number == 0:
        return "a prepare pod beside an attempt" if "attempt" in status else None
    if number != status.get("attempt"):
        return f"attempt {number} while {status.get('attempt')} is committed"
    last = status["attempts"][-1]
    return f"attempt {number} is over: {_short(last)}" if _ending(last) else None


@always("pod deleted", "no live worker is deleted before its attempt's end or stop is written")
def _commit_first(world: "World", change: Change) -> str | None:
    assert change.before
    uid, number = _label(change.before, names.LABEL_JOB_UID), _attempt(change.before)
    job = world.job
    if number == 0 or not job or job["metadata"]["uid"] != uid or not _runs(change.before):
        return None
    status = job.get("status", {})
    if number < status.get("attempt", 0) or status.get("phase") in _FINISHED:
        return None
    last = status["attempts"][-1]
    return None if _ending(last) else f"{change.before['metadata']['name']}: {_short(last)}"


# Whenever the operator has nothing more to do


@always("at rest", "never two gangs: pods that live belong to one attempt")
def _one_gang(world: "World", _: Any) -> str | None:
    if not world.job:
        return None
    pods = _gang_pods(world, world.job["metadata"]["uid"])
    attempts = {_attempt(pod) for pod in pods if _alive(world, pod)}
    return f"attempts {sorted(attempts)}" if len(attempts) > 1 else None


@always("at rest", "a suspended job holds no pod")
def _stays_empty(world: "World", _: Any) -> str | None:
    if not world.job or not _true(world.job, "Suspended"):
        return None
    left = [p["metadata"]["name"] for p in _own_pods(world, world.job["metadata"]["uid"])]
    return f"{left} exist" if left else None


@always("waiting", "who waits says for what")
def _names_it(world: "World", _: Any) -> str | None:
    job = world.job
    if not job or world.wire.armed:
        return None
    status = job.get("status", {})
    if not status.get("message"):
        return f"phase {status.get('phase')} has no message"
    missing = world.store.forbidden or "w" not in world.store.objects["persistentvolumeclaims"]
    creating = status.get("phase") in ("Preparing", "Starting") and not _own_pods(
        world, job["metadata"]["uid"]
    )
    if missing and creating and not status.get("reason"):
        return f"nothing can be created and no reason is given: {status['message']}"
    return None


@always("stuck", "a job that waits for a pod on a lost node names it")
def _names_the_pod(world: "World", _: Any) -> str | None:
    if not world.job:
        return None
    status = world.job.get("status", {})
    pods = [p for p in _own_pods(world, world.job["metadata"]["uid"]) if not _alive(world, p)]
    lost = [p["metadata"]["name"] for p in pods if _runs(p)]
    waits = status.get("phase") == "Suspending" or ("attempt" not in status and lost)
    if not lost or not waits or any(name in status["message"] for name in lost):
        return None
    return f"{lost} are lost, and it says: {status['message']}"


# When everything has gone well for a while


@always("settled", "every history leads to an end, whether lost nodes come back or not")
def _ends(world: "World", _: Any) -> str | None:
    job = world.job
    if job is None:
        return None
    status = job.get("status", {})
    suspended = job["spec"].get("suspend") and _true(job, "Suspended")
    if status.get("phase") in _FINISHED or suspended:
        return None
    return f"{status.get('phase')} {status.get('reason')}: {status.get('message')}"


@always("at the end", "no pod without a live job, and none runs of a finished one")
def _nothing_left(world: "World", _: Any) -> str | None:
    uid = world.job["metadata"]["uid"] if world.job else ""
    for pod in world.store.objects[PODS].values():
        if _label(pod, names.LABEL_JOB_UID) != uid:
            return f"{pod['metadata']['name']} is an orphan"
        if _runs(pod) and "terminated" not in _state(pod):
            return f"{pod['metadata']['name']} still runs"
    return None


@always("at the end", "only the newest fence publishes, and attempts never go back")
def _fenced(world: "World", _: Any) -> str | None:
    for run in world.nodes.runs.values():
        order = [(p.epoch, p.attempt) for p in run.published]
        if order != sorted(order):
            return f"published by {order}"
        if run.fences != sorted(run.fences):
            return f"fences claimed by attempts {run.fences}"
    return None


@always("at the end", "usage is exact where ends were seen, and marked where not")
def _exact(world: "World", _: Any) -> str | None:
    for attempt in _attempts(world):
        seconds, unseen = _true_seconds(world, attempt)
        if attempt.get("estimated"):
            facts = world.facts[world.job["metadata"]["uid"]] if world.job else None
            if not (unseen or world.blind or (facts and facts.pods_vanished)):
                return f"all ends were seen: {_short(attempt)}"
        elif attempt["deviceSeconds"] not in (
            seconds,
            _true_seconds(world, attempt, late=False)[0],
        ):
            return f"{seconds} s were used (unseen: {unseen}): {_short(attempt)}"
    return None


@always("at the end", "an attempt's outcome is what its processes did")
def _truthful(world: "World", _: Any) -> str | None:
    uid = world.job["metadata"]["uid"] if world.job else ""
    run = world.nodes.runs[uid]
    for attempt in _attempts(world):
        outcome, number = attempt.get("outcome"), attempt["number"]
        pods = [p for p in _ever(world, uid) if _attempt(p) == number]
        final = any(p.final and p.attempt == number for p in run.published)
        if outcome == "Succeeded" and not final:
            return f"attempt {number} published no model"
        if outcome == "Suspended" and not world.facts[uid].suspended:
            return f"attempt {number}: nobody suspended it"
        asked = any("deletionTimestamp" in p["metadata"] or _disrupted(p) for p in pods)
        exist = {p["metadata"]["uid"] for p in world.store.objects[PODS].values()}
        unseen = any(p["metadata"]["uid"] not in exist for p in pods)
        if outcome == "Preempted" and not (asked or unseen):
            return f"attempt {number}: nobody asked it to stop"
    return None


@always("at the end", "a job that is finished is let alone, and nothing is tried for ever")
def _quiet(world: "World", _: Any) -> str | None:
    own = world.controller
    if own.failures:
        return f"still trying: {own.failures}"
    return None


# What they look at


def _statuses(change: Change) -> tuple[Object, Object]:
    return (change.before or {}).get("status", {}), (change.after or {}).get("status", {})


def _uid(change: Change) -> str:
    item = change.after or change.before or {}
    return str(item["metadata"]["uid"])


def _label(pod: Object, label: str) -> str:
    return str(pod["metadata"].get("labels", {}).get(label, ""))


def _attempt(pod: Object) -> int:
    return int(_label(pod, names.LABEL_ATTEMPT) or 0)


def _own_pods(world: "World", uid: str) -> list[Object]:
    pods = world.store.objects[PODS].values()
    return [pod for pod in pods if _label(pod, names.LABEL_JOB_UID) == uid]


def _gang_pods(world: "World", uid: str) -> list[Object]:
    return [pod for pod in _own_pods(world, uid) if _attempt(pod)]


def _ever(world: "World", uid: str) -> list[Object]:
    """The last version of every pod there ever was."""
    pods = world.store.last.values()
    return [pod for pod in pods if _label(pod, names.LABEL_JOB_UID) == uid]


def _runs(pod: Object) -> bool:
    return pod["status"].get("phase") not in _TERMINAL


def _alive(world: "World", pod: Object) -> bool:
    """Not terminal and not lost."""
    deletion = pod["metadata"].get("deletionTimestamp")
    if deletion:
        late = (world.clock.now() - datetime.fromisoformat(deletion)).total_seconds()
        return _runs(pod) and late <= LOST
    return _runs(pod)


def _state(pod: Object) -> Object:
    statuses = pod["status"].get("containerStatuses") or [{}]
    state: Object = statuses[0].get("state", {})
    return state


def _disrupted(pod: Object) -> bool:
    return any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions", []))


def _true(job: Object | None, kind: str) -> bool:
    conditions = (job or {}).get("status", {}).get("conditions", [])
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def _ending(attempt: Object) -> bool:
    return bool(attempt.get("outcome") or attempt.get("stopReason"))


def _attempts(world: "World") -> list[Object]:
    """Of a job that has come to its end, where every pod is over."""
    if not world.job:
        return []
    attempts: list[Object] = world.job.get("status", {}).get("attempts", [])
    return attempts


def _progressed(status: Object, attempt: Object) -> bool:
    steps = [a.get("lastStep", 0) for a in status["attempts"] if a["number"] < attempt["number"]]
    steps.append(status.get("foldedAttempts", {}).get("lastStep", 0))
    return bool(attempt.get("lastStep", 0) > max(steps))


def _true_seconds(world: "World", attempt: Object, *, late: bool = True) -> tuple[int, bool]:
    """Device seconds of an attempt by what the kubelets said, and whether an end is missing.

    A pod that a dead operator's request made later belongs to the attempt only if it goes on.
    """
    total, unseen = 0.0, False
    assert world.job
    for pod in _ever(world, world.job["metadata"]["uid"]):
        if _attempt(pod) != attempt["number"]:
            continue
        if not late and pod["metadata"]["uid"] in world.late_pods:
            continue
        bound = [c for c in pod["status"].get("conditions", []) if c["type"] == "PodScheduled"]
        if not bound or bound[0]["status"] != "True":
            continue
        end = _state(pod).get("terminated")
        if end is None:
            unseen = True  # charged to the moment when the pod failed, or to a proof of life
            continue
        since = datetime.fromisoformat(bound[0]["lastTransitionTime"])
        total += (datetime.fromisoformat(end["finishedAt"]) - since).total_seconds()
    return int(total) * attempt["devicesPerWorker"], unseen


def _short(attempt: Object) -> str:
    fields = ("number", "outcome", "reason", "stopReason", "deviceSeconds", "estimated", "created")
    return str({name: attempt[name] for name in fields if name in attempt})


__all__ = ["BY_MOMENT", "JOBS", "BrokenError", "Invariant"]
