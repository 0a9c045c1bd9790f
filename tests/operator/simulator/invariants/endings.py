"""The invariants of the end of a history."""

from typing import TYPE_CHECKING, Any

from finetune_api.base import Object
from tests.operator.simulator.invariants.queries import (
    all_pods,
    attempt_of,
    attempts_of,
    disrupted,
    owner,
    runs,
    short,
    state_of,
    true_seconds,
)
from tests.operator.simulator.invariants.registry import invariant
from tests.operator.simulator.store import PODS

if TYPE_CHECKING:
    from tests.operator.simulator.world import World


@invariant("at the end", "no pod exists without its job, and none of a finished job runs")
def _nothing_left(world: "World", _: Any) -> str | None:
    uid = world.job["metadata"]["uid"] if world.job else ""
    for pod in world.store.objects[PODS].values():
        if owner(pod) != uid:
            return f"{pod['metadata']['name']} is an orphan"
        if runs(pod) and "terminated" not in state_of(pod):
            return f"{pod['metadata']['name']} still runs"
    return None


@invariant("at the end", "only the newest fence epoch publishes, and attempts never go back")
def _fenced(world: "World", _: Any) -> str | None:
    for run in world.nodes.runs.values():
        order = [(p.epoch, p.attempt) for p in run.published]
        if order != sorted(order):
            return f"published by {order}"
        if run.fences != sorted(run.fences):
            return f"fences claimed by attempts {run.fences}"
    return None


@invariant(
    "at the end", "usage is exact where ends were observed, and marked as estimated elsewhere"
)
def _exact(world: "World", _: Any) -> str | None:
    for attempt in attempts_of(world):
        seconds, unseen = true_seconds(world, attempt)
        least = true_seconds(world, attempt, late=False)[0]
        if not world.blind and attempt["deviceSeconds"] < least - _tolerance(world, attempt):
            return f"at least {least} s were used: {short(attempt)}"
        if attempt.get("estimated"):
            facts = world.facts[world.job["metadata"]["uid"]] if world.job else None
            if not (unseen or world.blind or (facts and facts.pods_vanished)):
                return f"all ends were observed: {short(attempt)}"
        elif attempt["deviceSeconds"] not in (
            _at_least_its_steps(attempt, seconds),
            _at_least_its_steps(attempt, least),
        ):
            return f"{seconds} s were used (unseen: {unseen}): {short(attempt)}"
    return None


def _tolerance(world: "World", attempt: Object) -> int:
    """Return the device seconds by which the clocks of nodes and whole seconds can be wrong."""
    clocks = max(abs(skew) for skew in world.config.skews)
    return int(attempt["workers"] * attempt["devicesPerWorker"]) * (clocks + 1)


def _at_least_its_steps(attempt: Object, seconds: int) -> int:
    """Return the seconds, at least those of the steps: a node's clock may be behind its steps."""
    parts = ("productiveDeviceSeconds", "lostDeviceSeconds")
    return max(seconds, sum(attempt[part] for part in parts))


@invariant("at the end", "an attempt's outcome is what its processes did")
def _outcome_is_true(world: "World", _: Any) -> str | None:
    uid = world.job["metadata"]["uid"] if world.job else ""
    run = world.nodes.runs[uid]
    for attempt in attempts_of(world):
        outcome, number = attempt.get("outcome"), attempt["number"]
        pods = [p for p in all_pods(world, uid) if attempt_of(p) == number]
        final = any(p.final and p.attempt == number for p in run.published)
        if outcome == "Succeeded" and not final:
            return f"attempt {number} published no model"
        if outcome == "Suspended" and not world.facts[uid].suspended:
            return f"attempt {number}: the job was never suspended"
        asked = any("deletionTimestamp" in p["metadata"] or disrupted(p) for p in pods)
        exist = {p["metadata"]["uid"] for p in world.store.objects[PODS].values()}
        unseen = any(p["metadata"]["uid"] not in exist for p in pods)
        if outcome == "Preempted" and not (asked or unseen):
            return f"attempt {number}: no pod was asked to stop"
    return None


@invariant("at the end", "a finished job is not reconciled again and again")
def _comes_to_rest(world: "World", _: Any) -> str | None:
    own = world.controller
    if own.failures:
        return f"still trying: {own.failures}"
    return None
