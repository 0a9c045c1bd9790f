"""The invariants of every status that the operator writes."""

from typing import TYPE_CHECKING, Any

from finetune_api.base import Object
from tests.operator.simulator.invariants.queries import (
    FINISHED,
    alive,
    gang_pods,
    is_true,
    own_pods,
    progressed,
    short,
    statuses,
    uid_of,
)
from tests.operator.simulator.invariants.registry import invariant
from tests.operator.simulator.store import Change, size
from tests.operator.worlds import SETTINGS

if TYPE_CHECKING:
    from tests.operator.simulator.world import World


@invariant("status written", "every status write names the version it was planned from")
def _guarded(world: "World", change: Change) -> str | None:
    sent = (change.body or {}).get("metadata", {})
    missing = {"resourceVersion", "uid"} - set(sent)
    return f"the patch lacks {sorted(missing)}" if missing else None


@invariant("status written", "a finished job never changes")
def _finished_is_final(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    if old.get("phase") not in FINISHED or old == new:
        return None
    return f"{old['phase']} {old.get('reason')} -> {new.get('phase')} {new.get('reason')}"


@invariant("status written", "a finished job has exactly one of Succeeded and Failed, others none")
def _one_outcome(world: "World", change: Change) -> str | None:
    _, new = statuses(change)
    true = [c["type"] for c in new["conditions"] if c["status"] == "True"]
    found = [kind for kind in true if kind in FINISHED]
    wanted = [new["phase"]] if new["phase"] in FINISHED else []
    return f"phase {new['phase']} with conditions {found}" if found != wanted else None


@invariant("status written", "the next attempt begins when every pod of those before is over")
def _never_two_gangs(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    if new.get("attempt") == old.get("attempt"):
        return None
    if new["attempt"] != old.get("attempt", 0) + 1:
        return f"attempt {old.get('attempt')} -> {new['attempt']}"
    left = [p["metadata"]["name"] for p in gang_pods(world, uid_of(change)) if alive(world, p)]
    return f"attempt {new['attempt']} while {left} live" if left else None


@invariant("status written", "a suspended job holds no pod")
def _suspended_is_empty(world: "World", change: Change) -> str | None:
    left = [p["metadata"]["name"] for p in own_pods(world, uid_of(change))]
    return f"{left} exist" if left and is_true(change.after, "Suspended") else None


@invariant(
    "status written", "restarts are the failures and preemptions that another attempt follows"
)
def _restarts(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    if new.get("restarts", 0) < old.get("restarts", 0):
        return f"{old['restarts']} -> {new['restarts']}"
    wanted = world.facts[uid_of(change)].restarts
    found = new.get("restarts", 0)
    return f"{found} instead of {wanted}" if found != wanted else None


@invariant(
    "status written", "counted restarts grow one by one, by attempts that count, to the limit"
)
def _counted(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    grown = new.get("countedRestarts", 0) - old.get("countedRestarts", 0)
    if grown <= 0:
        return None
    last = new["attempts"][-1]
    if grown > 1 or not last.get("counted"):
        return f"grew by {grown} with attempt {last['number']} counted={last.get('counted')}"
    limit = (change.before or {})["spec"]["runPolicy"].get("maxRestarts", 3)
    if new["countedRestarts"] > limit and new.get("nextAttemptTime"):
        return f"{new['countedRestarts']} of {limit} and another attempt follows"
    return None


@invariant("status written", "counted restarts are reset only by a newer checkpoint")
def _reset(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    if new.get("countedRestarts", 0) >= old.get("countedRestarts", 0):
        return None
    before, after = (s.get("latestCheckpoint", {}).get("step", 0) for s in (old, new))
    return None if after > before else f"reset, and the newest checkpoint is still {after}"


@invariant("status written", "preemption with a checkpoint, suspension and release never count")
def _what_counts(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    closed = {a["number"] for a in old.get("attempts", []) if "outcome" in a}
    for attempt in new.get("attempts", []):
        if attempt["number"] in closed:
            continue  # a step that is reported later does not change what was counted
        outcome, counted = attempt.get("outcome"), attempt.get("counted")
        if outcome in ("Suspended", "Released") and counted:
            return f"attempt {attempt['number']} {outcome} counts"
        if outcome == "Preempted" and counted and progressed(new, attempt):
            return f"attempt {attempt['number']} was preempted with progress and counts"
    return None


@invariant("status written", "how an attempt ended never changes")
def _outcome_is_final(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
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


@invariant("status written", "a stop reason never changes")
def _stop_reason_is_final(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    if not old.get("attempts") or not old["attempts"][-1].get("stopReason"):
        return None
    known = {a["number"]: a.get("stopReason") for a in new["attempts"]}
    number, reason = old["attempts"][-1]["number"], old["attempts"][-1]["stopReason"]
    return f"{reason} -> {known[number]}" if known.get(number, reason) != reason else None


@invariant("status written", "the parts and the attempts of usage add up to its total")
def _adds_up(world: "World", change: Change) -> str | None:
    _, new = statuses(change)
    usage = new.get("usage")
    if usage is None:
        return None
    parts = [usage[f"{part}DeviceSeconds"] for part in ("productive", "lost", "overhead")]
    attempts = [*new["attempts"], *([new["foldedAttempts"]] if "foldedAttempts" in new else [])]
    total = sum(a["deviceSeconds"] for a in attempts)
    if min(parts) < 0 or sum(parts) != usage["deviceSeconds"] or total != usage["deviceSeconds"]:
        return f"{usage}, attempts {[a['deviceSeconds'] for a in attempts]}"
    return None


@invariant("status written", "usage never shrinks, and only a correction changes settled sums")
def _monotone(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    known = {a["number"]: a for a in new.get("attempts", [])}
    for before in old.get("attempts", []):
        after = known.get(before["number"], before)
        shrinks = after["deviceSeconds"] < before["deviceSeconds"]
        # Finalizing replaces what was charged by what the kubelets reported later, once `settled`
        # and if they know all ends.
        exact = after.get("settled") and not after.get("estimated")
        # The exact end of a worker on a lost node replaces its estimate.
        seen = after.get("lostWorkers", []) < before.get("lostWorkers", [])
        if shrinks and not seen and (before.get("settled") or not exact):
            return f"attempt {before['number']} {before['deviceSeconds']} -> {short(after)}"
        changed = after["deviceSeconds"] != before["deviceSeconds"]
        corrected = after.get("corrected") and _correction(after) != _correction(before)
        if before.get("settled") and changed and not corrected:
            return f"attempt {before['number']} settled: {short(before)} -> {short(after)}"
    return None


def _correction(attempt: Object) -> list[Any]:
    """Return what changes with every correction of a settled sum."""
    return [attempt.get(field) for field in ("corrected", "vanishedTime", "lostWorkers")]


@invariant("status written", "the steps of an attempt, once proved, are never taken back")
def _steps_stay(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    known = {a["number"]: a for a in new.get("attempts", [])}
    for before in old.get("attempts", []):
        after = known.get(before["number"], before)
        for field in ("lastStep", "productiveDeviceSeconds"):
            if after.get(field, 0) < before.get(field, 0):
                return f"attempt {before['number']}: {field} {before[field]} -> {after.get(field)}"
    return None


@invariant("status written", "a status fits into 32 kB")
def _small(world: "World", change: Change) -> str | None:
    _, new = statuses(change)
    return f"{size(new)} bytes" if size(new) > 32 * 1024 else None


@invariant("status written", "every status has a message")
def _has_a_message(world: "World", change: Change) -> str | None:
    _, new = statuses(change)
    return f"phase {new.get('phase')} without a message" if not new.get("message") else None


@invariant(
    "status written", "an attempt starts, runs and ends in that order, and not in the future"
)
def _in_order(world: "World", change: Change) -> str | None:
    _, new = statuses(change)
    for attempt in new.get("attempts", []):
        times = [attempt.get(f"{name}Time") for name in ("start", "running", "completion")]
        known = [*(time for time in times if time), world.clock.stamp()]
        if known != sorted(known):
            return f"attempt {attempt['number']}: {times} at {world.clock.stamp()}"
    return None


@invariant("status written", "a message alone is written at most once in five seconds")
def _no_urgent_message(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    now = (uid_of(change), world.clock.seconds, world.store.version)
    (uid, at, version), world.last_write = world.last_write, now
    soon = uid == uid_of(change) and world.clock.seconds - at < SETTINGS.progress_write_interval
    # An operator that has just started does not know when its predecessor wrote.
    own = version > world.controller.first_version
    if soon and own and _without_messages(old) == _without_messages(new):
        return f"{old.get('message')} -> {new.get('message')}"
    return None


def _without_messages(status: Object) -> Object:
    parts = {k: v for k, v in status.items() if k not in ("message", "usage", "display")}
    for name in ("conditions", "attempts"):
        items = status.get(name, [])
        parts[name] = [{k: v for k, v in item.items() if k != "message"} for item in items]
    return parts
