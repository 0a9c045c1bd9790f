"""What must hold when the operator has nothing more to do, and when all has gone well."""

from typing import TYPE_CHECKING, Any

from tests.operator.simulator.invariants.looking import (
    FINISHED,
    alive,
    attempt_of,
    gang_pods,
    is_true,
    own_pods,
    runs,
)
from tests.operator.simulator.invariants.registry import always

if TYPE_CHECKING:
    from tests.operator.simulator.world import World


@always("at rest", "never two gangs: pods that live belong to one attempt")
def _one_gang(world: "World", _: Any) -> str | None:
    if not world.job:
        return None
    pods = gang_pods(world, world.job["metadata"]["uid"])
    attempts = {attempt_of(pod) for pod in pods if alive(world, pod)}
    return f"attempts {sorted(attempts)}" if len(attempts) > 1 else None


@always("at rest", "a suspended job holds no pod")
def _stays_empty(world: "World", _: Any) -> str | None:
    if not world.job or not is_true(world.job, "Suspended"):
        return None
    left = [p["metadata"]["name"] for p in own_pods(world, world.job["metadata"]["uid"])]
    return f"{left} exist" if left else None


@always("waiting", "who waits says for what")
def _names_it(world: "World", _: Any) -> str | None:
    job = world.job
    if not job or world.wire.armed:
        return None
    status = job.get("status", {})
    if not status.get("message"):
        return f"phase {status.get('phase')} has no message"
    missing = world.store.quota == 0 or "w" not in world.store.objects["persistentvolumeclaims"]
    creating = status.get("phase") in ("Preparing", "Starting") and not own_pods(
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
    pods = [p for p in own_pods(world, world.job["metadata"]["uid"]) if not alive(world, p)]
    lost = [p["metadata"]["name"] for p in pods if runs(p)]
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
    suspended = job["spec"].get("suspend") and is_true(job, "Suspended")
    if status.get("phase") in FINISHED or suspended:
        return None
    return f"{status.get('phase')} {status.get('reason')}: {status.get('message')}"
