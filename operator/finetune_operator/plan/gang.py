"""The policy for a live attempt: one gang, from its commit until it ends or is to be stopped.

The attempt exists from the moment its commit is written. Its pods are rendered from that status.
"""

from finetune_api.status import Attempt, FineTuneJobStatus, Resolved
from finetune_operator.plan import (
    attempts,
    configuration,
    deadlines,
    ending,
    export,
    first_step,
    images,
    incomplete_gang,
    interruption,
    stops,
    suspend,
    usage,
)
from finetune_operator.plan import pods as render
from finetune_operator.plan.decision import RECHECK, SHORT_GRACE, Decision, Delete
from finetune_operator.plan.describe import (
    Situation,
    creating_pods,
    describe,
    refused_condition,
    why_waiting,
)
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.slow_pods import seconds_until_slow
from finetune_operator.plan.stops import StopRequest
from finetune_operator.plan.template import UnrenderableError
from finetune_operator.plan.verdict import Verdict, seconds_until_final, verdict
from finetune_operator.settings import Settings


def decide(world: World, settings: Settings) -> Decision:
    """Decide for a job whose newest attempt has no outcome yet."""
    gang = world.gang(attempts.current(world.job.status).number)
    status = _record_milestones(world, attempts.refresh(world, gang), gang)
    attempt = attempts.current(status)
    if attempt.stop_reason:
        return ending.stop(world, status, gang, settings)
    if found := _verdict(world, status, gang):
        return ending.close(world, status, gang, found, settings)
    stop_requests = _stop_requests(world, status, gang)
    if request := stops.due(stop_requests, world.now):
        return ending.request_stop(world, status, request)
    if not attempt.created:
        return _create(world, status, gang)
    # No event announces the end of these waits.
    waits = [
        seconds_until_final(gang, world.now),
        stops.seconds_until_next(stop_requests, world.now),
        seconds_until_slow(gang, world.now),
    ]
    described = describe(world, status, _situation(world, status, gang))
    waits += [usage.HELD_INTERVAL if usage.holds_only(described) else usage.PROOF_INTERVAL]
    return Decision(
        described,
        delete=_late_pod_deletions(world, attempt),
        requeue_after=min(wait for wait in waits if wait is not None),
    )


def _verdict(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> Verdict | None:
    attempt = attempts.current(status)
    if attempt.running_time is None:
        return incomplete_gang.verdict(attempt, gang, world.now)
    overlooked = export.overlooked(world, status, gang)
    gang = export.relevant(world, status, gang)
    found = verdict(gang, attempt.workers, attempt.created, world.now, overlooked=overlooked)
    if found:
        return first_step.explained(found, world, attempt, gang)
    return first_step.verdict(world, attempt, gang)


def _late_pod_deletions(world: World, attempt: Attempt) -> list[Delete]:
    """Return deletions of pods that a delayed request created after their attempt had ended."""
    older = [pod for pod in world.pods if pod.role == "worker" and pod.attempt < attempt.number]
    return ending.deletions([pod for pod in older if not pod.over(world.now)])


def _record_milestones(
    world: World, status: FineTuneJobStatus, gang: list[Pod]
) -> FineTuneJobStatus:
    """Record the moments at which all pods of the gang were created, were ungated and ran."""
    attempt, now = attempts.current(status), world.now
    present = {pod.index for pod in gang if not pod.gone}
    created = attempt.created or len(present) == attempt.workers
    waits = attempt.schedulable_time is None and attempt.running_time is None
    if created and waits and not any(pod.gates for pod in gang):
        attempt = attempt.replace(schedulable_time=now)
    if attempt.running_time is None and incomplete_gang.is_complete(attempt, gang):
        attempt = attempt.replace(running_time=now)
        status = status.replace(start_time=status.start_time or now)
        status = status.replace(resolved=_with_digest(status.resolved, gang))
        created = True  # a step proves that all pods existed
    return attempts.replace_current(status, attempt.replace(created=created))


def _with_digest(resolved: Resolved | None, gang: list[Pod]) -> Resolved | None:
    """Return what was resolved, with the digest of the image that the gang runs."""
    image_id = next((pod.image_id for pod in gang if pod.image_id), "")
    return resolved and resolved.replace(image=images.frozen(resolved.image, image_id))


def _stop_requests(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> list[StopRequest]:
    """Return the requests of all policies that may stop a gang, the most important first."""
    policy, attempt = world.job.spec.run_policy, attempts.current(status)
    return [
        *suspend.stop_requests(world.job),
        *configuration.stop_requests(world.job, attempt, gang),
        *deadlines.active(world, status, attempt),
        *deadlines.start(policy, attempt, gang),
        *deadlines.progress(policy, world, attempt),
        *incomplete_gang.stop_requests(policy, status, gang, refused_condition(world)),
    ]


def _create(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> Decision:
    job, attempt = world.job.with_status(status), attempts.current(status)
    if world.refusal:
        return _refused(world, status, world.refusal.reason, world.refusal.message)
    if configuration.changed(job):  # no pod exists yet, or the gang would be stopped
        situation = creating_pods(attempt.workers)
        return Decision(
            describe(world, configuration.frozen(job), situation), commits=True, requeue_after=0
        )
    present = {pod.index for pod in gang if not pod.gone}
    missing = [index for index in range(attempt.workers) if index not in present]
    highest = attempts.highest_step(status, before=attempt.number)
    try:
        new = render.worker_pods(job, highest, missing)
    except UnrenderableError as error:  # spec.tracking may have grown since the commit
        return _refused(world, status, error.reason, str(error))
    situation = creating_pods(len(new))
    return Decision(
        describe(world, status, situation, creating=True),
        create=[render.service(job), *new],
        check=None if present else render.check_of_gang(job, new[0]),
        delete=_no_longer_needed(world, attempt),
    )


def _no_longer_needed(world: World, attempt: Attempt) -> list[Delete]:
    """Return deletions of the pods of older attempts, and of a prepare pod that still runs.

    The pods of the attempt directly before this one, and a prepare pod that has ended, are kept for
    their logs. A sidecar of the prepare pod would hold a node that the gang may need.
    """
    old = [p for p in world.pods if p.role == "worker" and p.attempt < attempt.number - 1]
    deletions = [Delete(pod.name, pod.uid) for pod in old if not (pod.gone or pod.deletion)]
    running = [p for p in world.prepare_pods if not (p.finished or p.deletion)]
    return [*deletions, *(Delete(pod.name, pod.uid, SHORT_GRACE) for pod in running)]


def _refused(world: World, status: FineTuneJobStatus, reason: str, message: str) -> Decision:
    situation = Situation("Starting", reason, message, accepted=False)
    return Decision(describe(world, status, situation), requeue_after=RECHECK)


def _situation(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> Situation:
    attempt = attempts.current(status)
    if found := interruption.situation(attempt, export.relevant(world, status, gang)):
        return found
    if attempt.running_time:  # workers that have ended by now are described above
        stage = world.report.stage if world.report else (status.stage or "LoadingModel")
        if export.is_known(world, status, gang):  # the newest report may be older
            stage = "Exporting"
        waiting_for = world.report and not world.silent and world.report.waiting_for
        text = f"worker 0 waits for {waiting_for}" if waiting_for else ""
        return Situation("Running", message=text, stage=stage)
    bound = sum(1 for pod in gang if pod.scheduled)
    ready = sum(1 for pod in gang if pod.running)
    reason, message = why_waiting(gang) or ("", f"{ready} of {attempt.workers} workers run")
    if reason and not bound:
        return Situation("Queued", reason, message)
    if reason and bound < attempt.workers:
        message = f"{bound} of {attempt.workers} workers have a node; {message}"
    return Situation("Starting", reason, message)
