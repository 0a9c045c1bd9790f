"""The policy for a job before its first attempt: run the prepare pod, then commit attempt 1.

The prepare pod requests no device, so bad data and bad configuration cost no device time. Its
result is valid for the inputs that it was created with; if they are edited, it is replaced.
"""

from dataclasses import replace
from datetime import timedelta

from finetune_api import reasons
from finetune_api.exit_codes import is_permanent
from finetune_api.progress import Stage
from finetune_api.run import PrepareResult
from finetune_api.status import Resolved
from finetune_operator.plan import configuration, finished, inputs, restart, usage
from finetune_operator.plan import pods as render
from finetune_operator.plan.decision import RECHECK, SHORT_GRACE, Check, Decision, Delete
from finetune_operator.plan.describe import Situation, describe, refused_condition, why_waiting
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.resolve import resolve
from finetune_operator.plan.template import UnrenderableError
from finetune_operator.plan.verdict import reason_and_message
from finetune_operator.settings import Settings

RETRIES = 3
_PREPARING = "checking the model and preparing the data"


def decide(world: World, settings: Settings) -> Decision:
    """Decide for a job that has no attempt yet."""
    world = _record_admission(world)
    job = world.job
    image = job.spec.workers.image or settings.trainer_image
    digest = inputs.inputs_digest(job, image)
    pod = next(iter(world.prepare_pods), None)
    if pod is None:
        return _create(world, image, digest)
    if pod.deletion:
        # A pod on a lost node stays until the node is back or is removed, so name the node.
        where = f" on node {pod.node}" if pod.node else ""
        text = f"waiting for the old pod {pod.name}{where} to be deleted"
        again = pod if pod.needs_deletion(world.now) else None
        return _wait(world, Situation("Preparing", message=text), delete=again)
    if pod.inputs != digest or (_never_ran(pod) and pod.template != render.template_digest(job)):
        text = "the job was edited; preparing again"
        return _wait(world, Situation("Preparing", message=text), delete=pod)
    if pod.retry < job.status.prepare_failures:
        return _wait(world, _backing_off(world), delete=pod)  # its failure was counted before
    if pod.ended is None and pod.failure is None:
        if late := _start_deadline_message(world, pod):
            return finished.fail(world, job.status, reasons.START_DEADLINE_EXCEEDED, late)
        reason, message = why_waiting([pod]) or ("", _PREPARING)
        stage: Stage | None = "PreparingData" if pod.running else None
        return _wait(
            world, Situation("Preparing", reason, message, stage), wait=_seconds_left(world, pod)
        )
    if pod.asked_to_stop and not (pod.ended and pod.ended.exit_code == 0):
        text = "the prepare pod was evicted; preparing again"
        return _wait(world, Situation("Preparing", message=text), delete=pod)
    return _conclude(world, pod, image, settings)


def _create(world: World, image: str, digest: str) -> Decision:
    job = world.job
    if job.status.next_attempt_time and world.now < job.status.next_attempt_time:
        return _wait(world, _backing_off(world))
    try:
        pod = render.prepare_pod(job, image, digest)
    except UnrenderableError as error:
        return _refused(world, error.reason, str(error))
    if world.refusal:
        return _refused(world, world.refusal.reason, world.refusal.message)
    situation = Situation("Preparing", message=_PREPARING)
    # The pod is created without a dry run, because nothing is committed with it. If one was refused
    # before, dry runs come first until one is admitted.
    dry_run = pod if refused_condition(world) else None
    return Decision(
        status=describe(world, job.status, situation, creating=True),
        create=[pod],
        check=Check(claims=tuple(inputs.claims(job)), pod=dry_run),
    )


def _conclude(world: World, pod: Pod, image: str, settings: Settings) -> Decision:
    """Decide what follows from the end of the prepare pod."""
    status, end = world.job.status, pod.ended
    if end is None:
        reason, message = pod.failure or (reasons.POD_FAILED, "")
        return _retry(world, reason, message, settings)
    result = end.result()
    if end.exit_code == 0:
        prepared = result.prepared if result else None
        if prepared is None:
            text = (
                "the prepare pod exited with 0 but left no result; check that workers.image is a "
                "trainer image"
            )
            return finished.fail(world, status, reasons.NO_RESULT, text)
        if prepared.finished:
            return finished.succeed(world, status, prepared.finished)
        return commit_first(world, image, prepared)
    reason, message = reason_and_message(end)
    text = message or f"the prepare pod ended with exit code {end.exit_code}"
    if is_permanent(end.exit_code, prepare=True):
        return finished.fail(world, status, reason, text)
    return _retry(world, reason, text, settings)


def _retry(world: World, reason: str, message: str, settings: Settings) -> Decision:
    status = world.job.status
    if status.prepare_failures >= RETRIES:
        text = f"{message} (preparing failed {RETRIES + 1} times)"
        return finished.fail(world, status, reason, text)
    wait = restart.backoff_seconds(settings.restart_backoff, status.prepare_failures + 1)
    status = status.replace(
        prepare_failures=status.prepare_failures + 1,
        next_attempt_time=world.now + timedelta(seconds=wait),
    )
    situation = Situation("Preparing", reason, f"{message}; trying again")
    return Decision(describe(world, status, situation), commits=True, requeue_after=0)


def commit_first(world: World, image: str, prepared: PrepareResult) -> Decision:
    """Commit attempt 1, with the resolved inputs and the plan that the run keeps from now on."""
    job = world.job
    plan, data = resolve(job.spec, prepared)
    status = job.status.replace(
        attempt=1,
        next_attempt_time=None,
        resolved=Resolved(
            image=image,
            model_revision=prepared.model_revision,
            prepared_digest=prepared.prepared_digest,
            run_digest=prepared.run_digest,
            parameter_count=prepared.parameter_count,
        ),
        plan=plan,
        data=data,
        attempts=[usage.new_attempt(job.spec, 1, world.now)],
    )
    status = status.replace(usage=usage.total(status))
    status = configuration.frozen(job.with_status(status))
    try:
        (first,) = render.worker_pods(job.with_status(status), 0, [0])
    except UnrenderableError as error:
        return _refused(world, error.reason, str(error))
    if world.refusal:
        return _refused(world, world.refusal.reason, world.refusal.message)
    situation = Situation("Starting", message=f"creating {job.spec.workers.replicas} pods")
    return Decision(
        describe(world, status, situation), check=Check(pod=first), commits=True, requeue_after=0
    )


def _backing_off(world: World) -> Situation:
    status = world.job.status
    at = status.next_attempt_time
    when = f" at {at:%H:%M:%S} UTC" if at else ""
    text = f"preparing failed {status.prepare_failures} times; trying again{when}"
    return Situation("Preparing", reasons.BACK_OFF, text)


def _never_ran(pod: Pod) -> bool:
    """Return whether replacing the pod loses no work.

    Pods of earlier operators have no template digest and are not replaced.
    """
    return pod.template is not None and not (pod.running or pod.ended or pod.failure)


def _record_admission(world: World) -> World:
    """Record when the scheduling gates of the pod were removed; time in a queue does not count."""
    pod, status = next(iter(world.prepare_pods), None), world.job.status
    if pod is None or pod.gates or status.reason != reasons.SCHEDULING_GATED:
        return world
    status = status.replace(prepare_schedulable_time=world.now)
    return replace(world, job=world.job.with_status(status))


def _seconds_left(world: World, pod: Pod) -> float | None:
    """Return the seconds until startDeadlineSeconds is exceeded, or None if it cannot be."""
    limit = world.job.spec.run_policy.start_deadline_seconds
    if limit is None or pod.created is None or pod.running or pod.gates:
        return None
    since = max(pod.created, world.job.status.prepare_schedulable_time or pod.created)
    return (since + timedelta(seconds=limit) - world.now).total_seconds()


def _start_deadline_message(world: World, pod: Pod) -> str | None:
    """Return the message of a pod that exceeded startDeadlineSeconds, else None."""
    left = _seconds_left(world, pod)
    if left is None or left > 0:
        return None
    _, why = why_waiting([pod]) or ("", "it does not run")
    limit = world.job.spec.run_policy.start_deadline_seconds
    return f"not started within runPolicy.startDeadlineSeconds ({limit} s): {pod.name}: {why}"


def _wait(
    world: World,
    situation: Situation,
    delete: Pod | None = None,
    wait: float | None = None,
) -> Decision:
    at = world.job.status.next_attempt_time
    if wait is None and at:
        wait = (at - world.now).total_seconds()
    return Decision(
        describe(world, world.job.status, situation),
        delete=[Delete(delete.name, delete.uid, SHORT_GRACE)] if delete else [],
        requeue_after=wait if wait and wait > 0 else None,
    )


def _refused(world: World, reason: str, message: str) -> Decision:
    situation = Situation("Pending", reason, message, accepted=False)
    return Decision(
        describe(world, world.job.status, situation), requeue_after=RECHECK, commits=True
    )
