"""A living attempt: one gang from its commit to the moment when it ends or is asked to stop.

The attempt exists from the moment its commit was written; its pods are made from that very status.
"""

from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.plan import (
    attempts,
    deadlines,
    ending,
    failure,
    half_gang,
    stops,
    suspend,
    usage,
)
from finetune_operator.plan import pods as render
from finetune_operator.plan.decision import RECHECK, Decision, Delete
from finetune_operator.plan.describe import Situation, describe, refused, waiting
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.stops import Stop
from finetune_operator.plan.template import UnrenderableError
from finetune_operator.settings import Settings


def running(world: World, settings: Settings) -> Decision:
    """Decide for a job whose newest attempt has no outcome yet."""
    gang = world.gang(attempts.current(world.job.status).number)
    status = _progressed(world, attempts.observed(world, gang), gang)
    attempt = attempts.current(status)
    if attempt.stop_reason:
        return ending.stop(world, status, gang, settings)
    verdict = failure.verdict(gang, attempt.workers, attempt.created, world.now)
    if verdict:
        return ending.close(world, status, gang, verdict, settings)
    wishes = _wishes(world, status, gang)
    wish = stops.due(wishes, world.now)
    if wish:
        return ending.ask(world, status, wish)
    if not attempt.created:
        return _create(world, status, gang)
    # A consequence waits for its cause, by the clock; so do deadlines.
    waits = [failure.settles_in(gang, world.now), stops.wait(wishes, world.now)]
    known = [wait for wait in waits if wait is not None]
    return Decision(
        describe(world, status, _situation(world, status, gang)),
        delete=_strays(world, attempt),
        requeue_after=min([*known, usage.PROOF_INTERVAL]),
    )


def _strays(world: World, attempt: Attempt) -> list[Delete]:
    """Pods of older attempts that came to be after their end: a request that was slow."""
    older = [pod for pod in world.pods if pod.role == "worker" and pod.attempt < attempt.number]
    return ending.deletions([pod for pod in older if not pod.over(world.now)])


def _progressed(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> FineTuneJobStatus:
    """What has happened to the gang for the first time."""
    attempt, now = attempts.current(status), world.now
    present = {pod.index for pod in gang if not pod.gone}
    created = attempt.created or len(present) == attempt.workers
    waits = attempt.schedulable_time is None and attempt.running_time is None
    if created and waits and not any(pod.gates for pod in gang):
        attempt = attempt.replace(schedulable_time=now)
    if attempt.running_time is None and _all_ran(attempt, gang):
        attempt = attempt.replace(running_time=now)
        status = status.replace(start_time=status.start_time or now)
    return attempts.updated(status, attempt.replace(created=created))


def _wishes(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> list[Stop]:
    """All policies that may stop a gang, the more important first."""
    policy, attempt = world.job.spec.run_policy, attempts.current(status)
    return [
        *suspend.asks(world.job),
        *deadlines.active(world, status, attempt),
        *deadlines.start(policy, attempt, gang),
        *deadlines.progress(policy, world),
        *half_gang.asks(policy, attempt, gang, refused(world)),
    ]


def _all_ran(attempt: Attempt, gang: list[Pod]) -> bool:
    return sum(1 for pod in gang if pod.running or pod.ended) == attempt.workers


def _create(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> Decision:
    job, attempt = world.job.with_status(status), attempts.current(status)
    if world.refusal:
        return _refused(world, status, world.refusal.reason, world.refusal.message)
    present = {pod.index for pod in gang if not pod.gone}
    missing = [index for index in range(attempt.workers) if index not in present]
    highest = attempts.highest_step(status, before=attempt.number)
    try:
        new = render.worker_pods(job, highest, missing)
    except UnrenderableError as error:  # `tracking` may have grown since the commit
        return _refused(world, status, error.reason, str(error))
    situation = Situation("Starting", message=f"creating {len(new)} pods")
    # The attempt before this one stays, for its logs.
    old = [p for p in world.pods if p.role == "worker" and p.attempt < attempt.number - 1]
    return Decision(
        describe(world, status, situation, creating=True),
        create=[render.service(job), *new],
        delete=[Delete(pod.name, pod.uid) for pod in old if not (pod.gone or pod.deletion)],
    )


def _refused(world: World, status: FineTuneJobStatus, reason: str, message: str) -> Decision:
    situation = Situation("Starting", reason, message, accepted=False)
    return Decision(describe(world, status, situation), requeue_after=RECHECK)


def _situation(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> Situation:
    attempt = attempts.current(status)
    if _all_ran(attempt, gang):
        stage = world.report.stage if world.report else (status.stage or "LoadingModel")
        return Situation("Running", stage=stage)
    bound = sum(1 for pod in gang if pod.scheduled)
    ready = sum(1 for pod in gang if pod.running)
    reason, message = waiting(gang) or ("", f"{ready} of {attempt.workers} workers run")
    if reason and not bound:
        return Situation("Queued", reason, message)
    if reason and bound < attempt.workers:
        message = f"{bound} of {attempt.workers} workers have a node; {message}"
    return Situation("Starting", reason, message)
