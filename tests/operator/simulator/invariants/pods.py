"""What must hold whenever the operator creates or deletes a pod."""

from typing import TYPE_CHECKING

from finetune_api import names
from tests.operator.simulator.invariants.looking import (
    FINISHED,
    attempt_of,
    is_ending,
    label,
    runs,
    short,
)
from tests.operator.simulator.invariants.registry import always
from tests.operator.simulator.store import Change

if TYPE_CHECKING:
    from tests.operator.simulator.world import World


@always("pod created", "a pod is made only for the attempt that is committed and goes on")
def _no_stale_plan(world: "World", change: Change) -> str | None:
    assert change.after
    uid, number = label(change.after, names.LABEL_JOB_UID), attempt_of(change.after)
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
    return f"attempt {number} is over: {short(last)}" if is_ending(last) else None


@always("pod deleted", "no live worker is deleted before its attempt's end or stop is written")
def _commit_first(world: "World", change: Change) -> str | None:
    assert change.before
    uid, number = label(change.before, names.LABEL_JOB_UID), attempt_of(change.before)
    job = world.job
    if number == 0 or not job or job["metadata"]["uid"] != uid or not runs(change.before):
        return None
    status = job.get("status", {})
    if number < status.get("attempt", 0) or status.get("phase") in FINISHED:
        return None
    last = status["attempts"][-1]
    return None if is_ending(last) else f"{change.before['metadata']['name']}: {short(last)}"


@always("pod deleted", "a pod that is known to go is not deleted again")
def _once(world: "World", change: Change) -> str | None:
    assert change.before
    going = world.store.going.get(change.before["metadata"]["uid"])
    if change.late or going is None or going >= world.controller.looked_at[1]:
        return None
    return f"{change.before['metadata']['name']} is going already"
