"""The prepare pod: from nothing to the commit of the first attempt, or to a clear failure.

It holds no device, so bad data and bad configuration cost nothing. Its answer is valid for the
inputs it was made from; when they are edited meanwhile it is replaced.
"""

from dataclasses import replace
from datetime import timedelta

from finetune_api.exit_codes import is_permanent
from finetune_api.progress import Stage
from finetune_api.run import PrepareResult
from finetune_api.status import Resolved
from finetune_operator.plan import failure, usage
from finetune_operator.plan import pods as render
from finetune_operator.plan.decision import RECHECK, Check, Decision, Delete
from finetune_operator.plan.describe import GATED, Situation, describe, refused, waiting
from finetune_operator.plan.finish import failed, succeeded
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.resolve import resolve
from finetune_operator.plan.stops import START_DEADLINE
from finetune_operator.plan.template import UnrenderableError
from finetune_operator.settings import Settings

RETRIES = 3
_GRACE = 10  # s
_PREPARES = "checking the model and preparing the data"


def preparing(world: World, settings: Settings) -> Decision:
    """Decide for a job that has no attempt yet."""
    world = _let_in(world)
    job = world.job
    image = job.spec.workers.image or settings.trainer_image
    inputs = render.inputs_digest(job, image)
    pod = next(iter(world.prepare_pods), None)
    if pod is None:
        return _create(world, image, inputs)
    if pod.deletion:
        # On a node that is lost it stays until the node is back or removed: name it.
        where = f" on node {pod.node}" if pod.node else ""
        text = f"waiting for the old pod {pod.name}{where} to go"
        again = pod if pod.undeleted(world.now) else None
        return _wait(world, Situation("Preparing", message=text), delete=again)
    if pod.inputs != inputs or (_waits(pod) and pod.template != render.template_digest(job)):
        text = "the job was edited; preparing again"
        return _wait(world, Situation("Preparing", message=text), delete=pod)
    if pod.retry < job.status.prepare_failures:
        return _wait(world, _backing_off(world), delete=pod)  # its failure is counted already
    if pod.ended is None and pod.trouble is None:
        if late := _late(world, pod):
            return failed(world, job.status, START_DEADLINE, late)
        stop = waiting([pod])
        reason, message = stop or ("", _PREPARES)
        stage: Stage | None = "PreparingData" if pod.running else None
        return _wait(
            world, Situation("Preparing", reason, message, stage), wait=_seconds_left(world, pod)
        )
    if pod.told_to_stop and not (pod.ended and pod.ended.exit_code == 0):
        return _wait(world, Situation("Preparing", message="prepare pod evicted"), delete=pod)
    return _conclude(world, pod, image, settings)


def _create(world: World, image: str, inputs: str) -> Decision:
    job = world.job
    if job.status.next_attempt_time and world.now < job.status.next_attempt_time:
        return _wait(world, _backing_off(world))
    try:
        pod = render.prepare_pod(job, image, inputs)
    except UnrenderableError as error:
        return _refused(world, error.reason, str(error))
    if world.refusal:
        return _refused(world, world.refusal.reason, world.refusal.message)
    situation = Situation("Preparing", message=_PREPARES)
    # It is sent for real at once: nothing is committed with it. One that was refused before is only
    # tried until it would be admitted.
    tried = pod if refused(world) else None
    return Decision(
        status=describe(world, job.status, situation, creating=True),
        create=[pod],
        check=Check(claims=tuple(render.claims(job)), pod=tried),
    )


def _conclude(world: World, pod: Pod, image: str, settings: Settings) -> Decision:
    """The pod has ended."""
    status, end = world.job.status, pod.ended
    if end is None:
        reason, message = pod.trouble or ("PodFailed", "")
        return _retry(world, reason, message, settings)
    result = end.result()
    if end.exit_code == 0:
        prepared = result.prepared if result else None
        if prepared is None:
            text = "the prepare pod ended with 0 but left no result; is this the trainer image?"
            return failed(world, status, "NoResult", text)
        if prepared.finished:
            return succeeded(world, status, prepared.finished)
        return commit_first(world, image, prepared)
    reason, message = failure.told(end)
    text = message or f"the prepare pod ended with exit code {end.exit_code}"
    if is_permanent(end.exit_code, prepare=True):
        return failed(world, status, reason, text)
    return _retry(world, reason, text, settings)


def _retry(world: World, reason: str, message: str, settings: Settings) -> Decision:
    status = world.job.status
    if status.prepare_failures >= RETRIES:
        return failed(world, status, reason, f"{message} (preparing failed {RETRIES + 1} times)")
    wait = settings.restart_backoff * 2**status.prepare_failures
    status = status.replace(
        prepare_failures=status.prepare_failures + 1,
        next_attempt_time=world.now + timedelta(seconds=wait),
    )
    situation = Situation("Preparing", reason, f"{message}; trying again")
    return Decision(describe(world, status, situation), commits=True, requeue_after=0)


def commit_first(world: World, image: str, prepared: PrepareResult) -> Decision:
    """Freeze what was found and chosen; from here on attempt 1 exists."""
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
        attempts=[usage.begin(job.spec, 1, world.now)],
    )
    status = status.replace(usage=usage.total(status))
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
    return Situation("Preparing", "BackOff", text)


def _waits(pod: Pod) -> bool:
    """It never ran: to make it anew costs nothing. (An older operator noted no template.)"""
    return pod.template is not None and not (pod.running or pod.ended or pod.trouble)


def _let_in(world: World) -> World:
    """Time in a queue does not count: note when the gate that held the pod is gone."""
    pod, status = next(iter(world.prepare_pods), None), world.job.status
    if pod is None or pod.gates or status.reason != GATED:
        return world
    status = status.replace(prepare_schedulable_time=world.now)
    return replace(world, job=world.job.with_status(status))


def _seconds_left(world: World, pod: Pod) -> float | None:
    """Until startDeadlineSeconds strikes; None: never, or it runs already."""
    limit = world.job.spec.run_policy.start_deadline_seconds
    if limit is None or pod.created is None or pod.running or pod.gates:
        return None
    since = max(pod.created, world.job.status.prepare_schedulable_time or pod.created)
    return (since + timedelta(seconds=limit) - world.now).total_seconds()


def _late(world: World, pod: Pod) -> str | None:
    left = _seconds_left(world, pod)
    if left is None or left > 0:
        return None
    _, why = waiting([pod]) or ("", "it does not run")
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
        delete=[Delete(delete.name, delete.uid, _GRACE)] if delete else [],
        requeue_after=wait if wait and wait > 0 else None,
    )


def _refused(world: World, reason: str, message: str) -> Decision:
    situation = Situation("Pending", reason, message, accepted=False)
    return Decision(
        describe(world, world.job.status, situation), requeue_after=RECHECK, commits=True
    )
