"""The invariants of every creation and deletion of a pod by the operator."""

from typing import TYPE_CHECKING

from finetune_api import names
from finetune_api.base import Object
from tests.operator.simulator.invariants.queries import (
    FINISHED,
    attempt_of,
    gang_pods,
    is_ending,
    owner,
    run_config_of,
    runs,
    short,
)
from tests.operator.simulator.invariants.registry import invariant
from tests.operator.simulator.store import PODS, Change

if TYPE_CHECKING:
    from tests.operator.simulator.world import World


@invariant("pod created", "a pod is created only for the committed attempt, before its end")
def _no_stale_creation(world: "World", change: Change) -> str | None:
    assert change.after
    uid, number = owner(change.after), attempt_of(change.after)
    job, gone = world.job, world.facts[uid].gone_at_call
    if change.late:
        return None
    if gone is not None:
        stale = gone < world.controller.calls_before
        return "the job was deleted before the reconciliation began" if stale else None
    status = (job or {}).get("status", {})
    if number == 0:
        return "a prepare pod beside an attempt" if "attempt" in status else None
    if number != status.get("attempt"):
        return f"attempt {number} while {status.get('attempt')} is committed"
    last = status["attempts"][-1]
    return f"attempt {number} is over: {short(last)}" if is_ending(last) else None


@invariant("pod created", "a worker has the configuration of the other pods of its attempt")
def _one_configuration(world: "World", change: Change) -> str | None:
    assert change.after
    number, own = attempt_of(change.after), run_config_of(change.after)
    if change.late or not number:
        return None
    gang = gang_pods(world, owner(change.after))
    others = [pod for pod in gang if attempt_of(pod) == number and run_config_of(pod) != own]
    # One that a delayed request has just created is not known yet; see the moment "at rest".
    known = [pod for pod in others if pod["metadata"]["uid"] not in world.late_pods]
    return f"{known[0]['metadata']['name']} has another one" if known else None


def _begins(world: "World", pod: Object) -> tuple[int, str]:
    """Return the size of the gang whose first pod this is, else 0, and the uid of its job."""
    uid, number = owner(pod), attempt_of(pod)
    gang = [p for p in gang_pods(world, uid) if attempt_of(p) == number]
    current = world.job if world.job and world.job["metadata"]["uid"] == uid else None
    if not number or len(gang) > 1 or current is None:
        return 0, uid
    attempts = current.get("status", {}).get("attempts", [])
    return next((a["workers"] for a in attempts if a["number"] == number), 0), uid


@invariant("pod created", "a gang begins only when no other pod has one of its names")
def _names_are_free(world: "World", change: Change) -> str | None:
    assert change.after
    size, uid = (0, "") if change.late else _begins(world, change.after)
    for index in range(size):
        name = names.worker_pod_name("a", attempt_of(change.after), index)
        pod = world.store.objects[PODS].get(name)
        foreign = pod and owner(pod) != uid
        if pod and foreign and pod["metadata"]["uid"] not in world.late_pods:
            return f"{name} belongs to {owner(pod)}"
    return None


@invariant("pod created", "a gang begins only when the quota has room for all its pods")
def _has_room(world: "World", change: Change) -> str | None:
    assert change.after
    store = world.store
    size, _ = (0, "") if change.late else _begins(world, change.after)
    if not size or store.quota is None or store.quota_set >= world.controller.last_began[1]:
        return None
    needed = store.living - 1 + size
    return f"{needed} pods under a quota of {store.quota}" if needed > store.quota else None


@invariant("pod deleted", "no live worker is deleted before its attempt's end or stop is written")
def _commit_first(world: "World", change: Change) -> str | None:
    assert change.before
    uid, number = owner(change.before), attempt_of(change.before)
    job = world.job
    if number == 0 or not job or job["metadata"]["uid"] != uid or not runs(change.before):
        return None
    status = job.get("status", {})
    if number < status.get("attempt", 0) or status.get("phase") in FINISHED:
        return None
    last = status["attempts"][-1]
    return None if is_ending(last) else f"{change.before['metadata']['name']}: {short(last)}"


@invariant("pod deleted", "a pod that is known to be terminating is not deleted again")
def _deletes_once(world: "World", change: Change) -> str | None:
    assert change.before
    terminating = world.store.terminating.get(change.before["metadata"]["uid"])
    if change.late or terminating is None or terminating >= world.controller.last_began[1]:
        return None
    return f"{change.before['metadata']['name']} is terminating already"


@invariant("pod deleted", "a worker whose containers ended is kept for its log, as policies say")
def _keeps_logs(world: "World", change: Change) -> str | None:
    assert change.before
    pod, job = change.before, world.job
    ended = world.ended_at.get(pod["metadata"]["uid"])
    if ended is None or ended >= world.controller.last_began[1] or change.late:
        return None
    if not job or owner(pod) != job["metadata"]["uid"] or not attempt_of(pod):
        return None
    status, cleans = job.get("status", {}), job["spec"]["runPolicy"].get("cleanPodPolicy") == "All"
    if job["spec"].get("suspend") or (cleans and status.get("phase") in FINISHED):
        return None
    if attempt_of(pod) < status.get("attempt", 0) - 1:
        return None
    return f"{pod['metadata']['name']} had ended, and its log is deleted"
