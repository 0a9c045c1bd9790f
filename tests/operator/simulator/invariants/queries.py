"""Queries of a world and its objects that the invariants share."""

from datetime import datetime
from typing import TYPE_CHECKING

from finetune_api import names
from finetune_api.base import Object
from finetune_operator.plan.observe import LOST_AFTER
from tests.operator.simulator.store import PODS, TERMINAL, Change, identity, owner

if TYPE_CHECKING:
    from tests.operator.simulator.world import World

FINISHED = ("Succeeded", "Failed")  # phases of a job
_EXPLAINED_AFTER = 60.0  # s from its binding, with the throttle of messages


def statuses(change: Change) -> tuple[Object, Object]:
    return (change.before or {}).get("status", {}), (change.after or {}).get("status", {})


def uid_of(change: Change) -> str:
    item = change.after or change.before or {}
    return str(item["metadata"]["uid"])


def attempt_of(pod: Object) -> int:
    return identity(pod)[0]


def own_pods(world: "World", uid: str) -> list[Object]:
    pods = world.store.objects[PODS].values()
    return [pod for pod in pods if owner(pod) == uid]


def gang_pods(world: "World", uid: str) -> list[Object]:
    return [pod for pod in own_pods(world, uid) if attempt_of(pod)]


def newest_gang(world: "World") -> list[Object]:
    """Return the workers of the newest attempt that exist."""
    assert world.job
    number = world.job.get("status", {}).get("attempt")
    pods = gang_pods(world, world.job["metadata"]["uid"])
    return [pod for pod in pods if attempt_of(pod) == number]


def is_silent(pod: Object) -> bool:
    """Return whether the API server shows that the node of a running pod does not answer."""
    ready = [c for c in pod["status"].get("conditions", []) if c["type"] == "Ready"]
    silent = bool(ready) and ready[0]["status"] == "False" and not ready[0].get("reason")
    return silent and runs(pod) and "terminated" not in state_of(pod)


def is_unmounted(world: "World", pod: Object) -> bool:
    """Return whether a pod has waited for its volume for longer than messages take."""
    uid = pod["metadata"]["uid"]
    held = uid in world.nodes.held and bool(world.store.events_of(uid))
    if not held or not runs(pod) or "deletionTimestamp" in pod["metadata"]:
        return False
    return is_explained(world, pod)


def is_explained(world: "World", pod: Object) -> bool:
    """Return whether the conditions of a pod are so old that the message must be about them."""
    changes = [c["lastTransitionTime"] for c in pod["status"]["conditions"]]
    since = datetime.fromisoformat(max(changes))
    return (world.clock.now() - since).total_seconds() > _EXPLAINED_AFTER


def has_failed(pod: Object) -> bool:
    code = state_of(pod).get("terminated", {}).get("exitCode", 0)
    return code != 0 or pod["status"].get("phase") == "Failed"


def goes_on(pod: Object) -> bool:
    """Return whether nothing that the API server shows keeps a worker from going on.

    One that has trained to the end has done its part.
    """
    if state_of(pod).get("terminated", {}).get("exitCode") == 0:
        return True
    return not (has_failed(pod) or is_silent(pod) or "deletionTimestamp" in pod["metadata"])


def all_pods(world: "World", uid: str) -> list[Object]:
    """Return the last version of every pod of the job, including those that are gone."""
    pods = world.store.last.values()
    return [pod for pod in pods if owner(pod) == uid]


def runs(pod: Object) -> bool:
    """Return whether the phase is not final and a container has not ended."""
    return pod["status"].get("phase") not in TERMINAL and not containers_ended(pod)


def containers_ended(pod: Object) -> bool:
    states = [s["state"] for s in pod["status"].get("containerStatuses") or []]
    return bool(states) and all("terminated" in state for state in states)


def exact_end(pod: Object) -> datetime | None:
    """Return when the last container ended, if the kubelet wrote all ends with their times."""
    if not containers_ended(pod):
        return None
    ends = [s["state"]["terminated"].get("finishedAt") for s in pod["status"]["containerStatuses"]]
    return max(datetime.fromisoformat(end) for end in ends) if all(ends) else None


def alive(world: "World", pod: Object) -> bool:
    """Return whether the pod is neither terminal nor lost."""
    deletion = pod["metadata"].get("deletionTimestamp")
    if deletion:
        late = (world.clock.now() - datetime.fromisoformat(deletion)).total_seconds()
        return runs(pod) and late <= LOST_AFTER
    return runs(pod)


def state_of(pod: Object) -> Object:
    containers = pod["status"].get("containerStatuses") or [{}]
    state: Object = containers[0].get("state", {})
    return state


def run_config_of(pod: Object) -> str:
    """Return the configuration that the pod's trainer reads."""
    env: list[Object] = pod["spec"]["containers"][0]["env"]
    return str(next(entry["value"] for entry in env if entry["name"] == names.ENV_RUN))


def disrupted(pod: Object) -> bool:
    return any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions", []))


def is_true(job: Object | None, kind: str) -> bool:
    conditions = (job or {}).get("status", {}).get("conditions", [])
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def is_ending(attempt: Object) -> bool:
    return bool(attempt.get("outcome") or attempt.get("stopReason"))


def attempts_of(world: "World") -> list[Object]:
    """Return the attempts in the job's status, if the job exists."""
    if not world.job:
        return []
    attempts: list[Object] = world.job.get("status", {}).get("attempts", [])
    return attempts


def progressed(status: Object, attempt: Object) -> bool:
    steps = [a.get("lastStep", 0) for a in status["attempts"] if a["number"] < attempt["number"]]
    steps.append(status.get("foldedAttempts", {}).get("lastStep", 0))
    return bool(attempt.get("lastStep", 0) > max(steps))


def true_seconds(world: "World", attempt: Object, *, late: bool = True) -> tuple[int, bool]:
    """Return an attempt's device seconds as kubelets reported them, and whether an end is missing.

    A pod without an exact end counts up to the moment at which its status or its removal showed
    that it was over. `late` includes the pods that a delayed request created, which may belong to
    the attempt or not.
    """
    total, unseen = 0.0, False
    assert world.job
    for pod in all_pods(world, world.job["metadata"]["uid"]):
        if attempt_of(pod) != attempt["number"]:
            continue
        if not late and pod["metadata"]["uid"] in world.late_pods:
            continue
        bound = [c for c in pod["status"].get("conditions", []) if c["type"] == "PodScheduled"]
        if not bound or bound[0]["status"] != "True":
            continue
        since = datetime.fromisoformat(bound[0]["lastTransitionTime"])
        end = exact_end(pod)
        if end is None:
            unseen = True
            end = world.over_since.get(pod["metadata"]["uid"], since)
        # The clock of the node may be behind that of the scheduler.
        total += max(0.0, (end - since).total_seconds())
    return int(total) * attempt["devicesPerWorker"], unseen


def short(attempt: Object) -> str:
    fields = ("number", "outcome", "reason", "stopReason", "deviceSeconds", "estimated", "created")
    return str({name: attempt[name] for name in fields if name in attempt})
