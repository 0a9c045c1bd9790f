"""The invariants of the export, in which worker 0 is alone."""

from typing import TYPE_CHECKING, Any

from finetune_api.base import Object
from tests.operator.simulator.invariants.queries import (
    FINISHED,
    all_pods,
    attempts_of,
    is_ending,
    newest_gang,
    short,
    state_of,
    statuses,
    uid_of,
)
from tests.operator.simulator.invariants.registry import invariant
from tests.operator.simulator.node import Process
from tests.operator.simulator.store import PODS, Change, identity

if TYPE_CHECKING:
    from tests.operator.simulator.world import World

_STOPS = ("Suspended", "ActiveDeadlineExceeded", "Hang")


@invariant("status written", "an attempt goes on while its worker 0 is known to export the model")
def _goes_on(world: "World", change: Change) -> str | None:
    old, new = statuses(change)
    ended = {a["number"] for a in old.get("attempts", []) if is_ending(a)}
    for attempt in new.get("attempts", []):
        begun = attempt["number"] not in ended and "runningTime" in attempt
        if not begun or not is_ending(attempt) or attempt.get("stopReason") in _STOPS:
            continue
        gang = uid_of(change), attempt["number"]
        for process in world.nodes.processes.values():
            own = (process.job_uid, process.attempt) == gang and _exports(world, process)
            if own and _is_known(world, old, process):
                return short(attempt)
    return None


def _exports(world: "World", process: Process) -> bool:
    """Return whether a worker has exported since before the reconciliation, and is to go on."""
    if process.exports_since is None or process.uid in world.nodes.lost:
        return False
    pod = world.store.objects[PODS].get(process.pod["metadata"]["name"])
    asked = pod is None or "deletionTimestamp" in pod["metadata"]
    return not asked and process.exports_at_version < world.controller.last_began[1]


def _is_known(world: "World", old: Object, process: Process) -> bool:
    """Return whether a report, the status or the end of a worker shows that the gang has trained.

    An operator that was restarted first waits for a report.
    """
    own, gang = world.controller, newest_gang(world)
    report = own.reports.newest(process.job_uid, process.attempt)
    if own.reports.silent(process.job_uid, process.attempt):
        return False
    known = own.last_began[1]
    ended = [p for p in gang if world.ended_at.get(p["metadata"]["uid"], known) < known]
    if any(state_of(p)["terminated"]["exitCode"] == 0 for p in ended):
        return True
    if report:
        return bool(report.stage == "Exporting")
    # The others had ended and were collected before this operator began.
    return len(gang) == 1 and process.exports_at_version < own.first_version and not own.missed


@invariant("at the end", "a model that was exported is the output of its job")
def _is_the_output(world: "World", _: Any) -> str | None:
    if not world.job:
        return None
    uid, status = world.job["metadata"]["uid"], world.job.get("status", {})
    for pod in all_pods(world, uid):
        number, index = identity(pod)
        ended = world.ended_at.get(pod["metadata"]["uid"])
        code = state_of(pod).get("terminated", {}).get("exitCode")
        closed = world.closed_at.get((uid, number), world.store.version)
        if not number or index or code != 0 or ended is None or ended >= closed:
            continue
        attempts = [a for a in attempts_of(world) if a["number"] == number]
        if not attempts:
            continue
        gone = pod["metadata"]["uid"] not in {
            p["metadata"]["uid"] for p in world.store.objects[PODS].values()
        }
        if attempts[0].get("outcome") != "Succeeded" and not (gone and world.blind):
            return f"worker 0 exported it: {short(attempts[0])}"
        if status.get("phase") in FINISHED and "location" not in status.get("output", {}):
            return f"{status['phase']} {status.get('reason')} without it"
    return None
