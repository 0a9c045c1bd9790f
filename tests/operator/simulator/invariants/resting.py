"""The invariants of a moment at which the operator has nothing more to do."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.operator.simulator.invariants.queries import (
    FINISHED,
    alive,
    all_pods,
    attempt_of,
    attempts_of,
    exact_end,
    gang_pods,
    goes_on,
    has_failed,
    is_ending,
    is_explained,
    is_silent,
    is_true,
    is_unmounted,
    newest_gang,
    own_pods,
    run_config_of,
    runs,
)
from tests.operator.simulator.invariants.registry import invariant
from tests.operator.simulator.node import UNMOUNTED
from tests.operator.simulator.store import identity
from tests.operator.worlds import SETTINGS

if TYPE_CHECKING:
    from tests.operator.simulator.world import World


@invariant("at rest", "never two gangs: pods that live belong to one attempt")
def _one_gang(world: "World", _: Any) -> str | None:
    if not world.job:
        return None
    pods = gang_pods(world, world.job["metadata"]["uid"])
    attempts = {attempt_of(pod) for pod in pods if alive(world, pod)}
    return f"attempts {sorted(attempts)}" if len(attempts) > 1 else None


@invariant("at rest", "the pods of a gang that goes on have one configuration")
def _one_configuration(world: "World", _: Any) -> str | None:
    attempts, own = attempts_of(world), world.controller
    if not world.job or not attempts or is_ending(attempts[-1]):
        return None
    if own.failures or own.soon:  # it has something left to do
        return None
    pods = gang_pods(world, world.job["metadata"]["uid"])
    gang = [pod for pod in pods if attempt_of(pod) == attempts[-1]["number"]]
    return "they differ" if len({run_config_of(pod) for pod in gang}) > 1 else None


@invariant("at rest", "no prepare pod runs beside a gang that is complete")
def _no_idle_prepare_pod(world: "World", _: Any) -> str | None:
    attempts, own = attempts_of(world), world.controller
    if not world.job or not attempts or not attempts[-1].get("created"):
        return None
    if own.failures or own.soon or world.blind:
        return None
    pods = [p for p in own_pods(world, world.job["metadata"]["uid"]) if not attempt_of(p)]
    idle = [p for p in pods if alive(world, p) and "deletionTimestamp" not in p["metadata"]]
    return f"{idle[0]['metadata']['name']} runs" if idle else None


@invariant("at rest", "a suspended job holds no pod")
def _suspended_is_empty(world: "World", _: Any) -> str | None:
    if not world.job or not is_true(world.job, "Suspended"):
        return None
    left = [p["metadata"]["name"] for p in own_pods(world, world.job["metadata"]["uid"])]
    return f"{left} exist" if left else None


@invariant("at rest", "a refusal ends the creation of a gang, and delays the next one")
def _backs_off(world: "World", _: Any) -> str | None:
    own, refused = world.controller, world.store.refused
    times = Counter(at for at, _ in refused)
    if times and max(times.values()) > 12:
        return f"{max(times.values())} pods were refused at one moment"
    # Another run of the operator and an edit of the job begin anew.
    since = max(world.clock.seconds - 30, own.began, world.edited)
    recent = {at for at in times if at > since}
    return f"pods were refused at {sorted(recent)}" if len(recent) > 8 else None


def _will_plan_again(world: "World") -> bool:
    """Return whether the status is not up to date: a request failed, or changes wait."""
    if world.unlabelled:
        return True  # pods without a label are read again every ten seconds
    soon = world.clock.seconds + SETTINGS.progress_write_interval
    throttled = any(at <= soon for at in world.controller.timers.values())
    return bool(world.controller.failures or world.controller.soon or throttled)


@invariant("at rest", "a gang that has ended or cannot go on claims neither progress nor time left")
def _claims_nothing(world: "World", _: Any) -> str | None:
    if not world.job or _will_plan_again(world):
        return None
    status = world.job.get("status", {})
    doubtful = [p["metadata"]["name"] for p in newest_gang(world) if not goes_on(p)]
    if not doubtful or status["phase"] in FINISHED:
        return None
    if status["display"].get("eta") or " left" in status["message"]:
        return f"{doubtful} do not go on: {status['message']} ETA {status['display'].get('eta')}"
    ended = [p["metadata"]["name"] for p in newest_gang(world) if has_failed(p)]
    if ended and status["message"].startswith(("step ", "loading ")):
        return f"{ended} have failed: {status['message']}"
    return None


@invariant("at rest", "a node that does not answer is named while a pod on it is waited for")
def _names_the_node(world: "World", _: Any) -> str | None:
    if not world.job or _will_plan_again(world):
        return None
    status = world.job.get("status", {})
    gang = newest_gang(world)
    silent = [p["spec"]["nodeName"] for p in gang if is_silent(p) and is_explained(world, p)]
    if not silent or status["phase"] in FINISHED:
        return None
    if any(node in status["message"] for node in silent):
        return None
    return f"{silent} do not answer, and the message is: {status['message']}"


@invariant("at rest", "a save that failed is in the message of a job that trains on")
def _names_the_save(world: "World", _: Any) -> str | None:
    if not world.job or _will_plan_again(world):
        return None
    status = world.job.get("status", {})
    if status.get("phase") != "Running" or not all(goes_on(p) for p in newest_gang(world)):
        return None
    uid, number = world.job["metadata"]["uid"], status["attempt"]
    report = world.controller.reports.newest(uid, number)
    problem = report.progress.checkpoint_problem if report and report.progress else None
    if not problem or problem in status["message"]:
        return None
    return f"{problem}, and the message is: {status['message']}"


@invariant("at rest", "while preparation backs off, the message says why")
def _names_the_cause(world: "World", _: Any) -> str | None:
    status = world.job.get("status", {}) if world.job else {}
    text = status.get("message", "")
    unexplained = text.startswith(("preparing failed", "tried ", "trying again"))
    return text if status.get("reason") == "BackOff" and unexplained else None


@invariant("at rest", "a pod whose volume is not mounted is named, with the event of its node")
def _names_the_volume(world: "World", _: Any) -> str | None:
    if not world.job or _will_plan_again(world):
        return None
    status = world.job.get("status", {})
    waits = status.get("phase") in ("Preparing", "Starting")
    if not waits or status.get("reason") or status["message"].startswith("creating"):
        return None
    pods = own_pods(world, world.job["metadata"]["uid"])
    stuck = [p["metadata"]["name"] for p in pods if is_unmounted(world, p)]
    if not stuck or UNMOUNTED in status["message"]:
        return None
    return f"{stuck} wait for a volume, and the message is: {status['message']}"


@invariant("waiting", "a job that waits has a message, and a reason if nothing can be created")
def _explains_itself(world: "World", _: Any) -> str | None:
    job = world.job
    if not job or world.wire.scheduled:
        return None
    status = job.get("status", {})
    if not status.get("message"):
        return f"phase {status.get('phase')} has no message"
    missing = world.store.quota == 0 or world.store.webhook is not None
    missing |= "w" not in world.store.objects["persistentvolumeclaims"]
    creating = status.get("phase") in ("Preparing", "Starting") and not own_pods(
        world, job["metadata"]["uid"]
    )
    if missing and creating and not status.get("reason"):
        return f"nothing can be created and no reason is given: {status['message']}"
    return None


@invariant("stuck", "a job that waits for a pod on a lost node names it")
def _names_the_pod(world: "World", _: Any) -> str | None:
    if not world.job:
        return None
    status = world.job.get("status", {})
    pods = [p for p in own_pods(world, world.job["metadata"]["uid"]) if not alive(world, p)]
    lost = [p["metadata"]["name"] for p in pods if runs(p)]
    waits = status.get("phase") == "Suspending" or ("attempt" not in status and lost)
    if not lost or not waits or any(name in status["message"] for name in lost):
        return None
    return f"{lost} are lost, and the message is: {status['message']}"


@invariant("at rest", "an exact end of a worker on a lost node corrects its estimate")
def _corrects(world: "World", _: Any) -> str | None:
    job, own = world.job, world.controller
    if not job or own.missed or world.unlabelled or job.get("status", {}).get("phase") in FINISHED:
        return None
    for attempt in attempts_of(world):
        for pod in all_pods(world, job["metadata"]["uid"]):
            number, index = identity(pod)
            ended = world.ended_at.get(pod["metadata"]["uid"], 0)
            lost = number == attempt["number"] and index in attempt.get("lostWorkers", [])
            if lost and exact_end(pod) and ended > own.first_version:
                return f"{pod['metadata']['name']} ended, and is still taken to be lost"
    return None


# After the faults have stopped


@invariant("run out", "every history leads to an end, whether lost nodes come back or not")
def _ends(world: "World", _: Any) -> str | None:
    job = world.job
    if job is None:
        return None
    status = job.get("status", {})
    suspended = job["spec"].get("suspend") and is_true(job, "Suspended")
    if status.get("phase") in FINISHED or suspended:
        return None
    return f"{status.get('phase')} {status.get('reason')}: {status.get('message')}"
