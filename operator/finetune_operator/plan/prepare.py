"""The policy for a job before its first attempt: run the prepare pod, then commit attempt 1.

The prepare pod requests no device, so bad data and bad configuration cost no device time. Its
result is valid for the inputs that it was created with; if they are edited, it is replaced.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api import reasons
from finetune_api.exit_codes import is_permanent, meaning
from finetune_api.progress import DataSummary, Stage
from finetune_api.run import PrepareResult
from finetune_api.status import FineTuneJobStatus, Resolved
from finetune_operator.plan import (
    configuration,
    finished,
    images,
    inputs,
    nodes,
    restart,
    storage_overlap,
    template_rules,
    usage,
)
from finetune_operator.plan import pods as render
from finetune_operator.plan.decision import RECHECK, SHORT_GRACE, Check, Decision, Delete
from finetune_operator.plan.describe import (
    Situation,
    creating_pods,
    describe,
    refused_condition,
    why_waiting,
)
from finetune_operator.plan.observe import Job, Pod, Refusal, World
from finetune_operator.plan.outcomes import BackOff, by_a_node
from finetune_operator.plan.resolve import DoesNotFitError, resolve
from finetune_operator.plan.slow_pods import seconds_until_slow
from finetune_operator.plan.template import UnrenderableError
from finetune_operator.plan.verdict import killed_message, reason_and_message, was_killed
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
    interrupted = [p for p in _prepare_pods(world) if _is_interrupted(p, job, digest)]
    if interrupted:
        return _interrupted(world, interrupted[0], settings)
    if pod is None:
        return _create(world, image, digest, settings)
    if pod.deletion:
        return _wait_for_deletion(world, pod)
    if _is_outdated(pod, job, digest):
        text = "the job was edited; preparing again"
        return _wait(world, Situation("Preparing", message=text), delete=pod)
    if pod.retry < render.tries_of_preparation(job.status):
        return _wait(world, _backing_off(job.status), delete=pod)  # its end was counted before
    if pod.ended is None and pod.failure is None:
        if late := _start_deadline_message(world, pod):
            return finished.fail(world, job.status, reasons.START_DEADLINE_EXCEEDED, late)
        reason, message = why_waiting([pod]) or ("", _PREPARING)
        stage: Stage | None = "PreparingData" if pod.running else None
        waits = [_seconds_left(world, pod), seconds_until_slow([pod], world.now)]
        wait = min((wait for wait in waits if wait is not None), default=None)
        return _wait(world, Situation("Preparing", reason, message, stage), wait=wait)
    return _conclude(world, pod, image, settings)


def _wait_for_deletion(world: World, pod: Pod) -> Decision:
    # A pod on a lost node stays until the node is back or is removed, so name the node.
    text = f"waiting for the old pod {nodes.place(pod)} to be deleted"
    if problem := world.job.status.prepare_problem:
        text += f"; {problem}"
    reason = reasons.NODE_NOT_READY if pod.silent_since else ""
    again = pod if pod.needs_deletion(world.now) else None
    return _wait(world, Situation("Preparing", reason, text), delete=again)


def _prepare_pods(world: World) -> list[Pod]:
    return [pod for pod in world.pods if pod.role == "prepare"]


def _is_outdated(pod: Pod, job: Job, digest: str) -> bool:
    """Return whether the job was edited since, so that the operator replaces the pod."""
    never_ran = pod.template is not None and not (pod.running or pod.ended or pod.failure)
    return pod.inputs != digest or (never_ran and pod.template != render.template_digest(job))


def _is_interrupted(pod: Pod, job: Job, digest: str) -> bool:
    """Return whether something other than the pod and the operator ended it, not counted yet."""
    counted = pod.retry < render.tries_of_preparation(job.status)
    if counted or _is_outdated(pod, job, digest):
        return False
    if pod.ended:
        return pod.ended.unknown or (pod.asked_to_stop and pod.ended.exit_code != 0)
    return pod.asked_to_stop or (pod.failure is not None and by_a_node(pod.failure[0]))


def without_pods(world: World) -> FineTuneJobStatus:
    """Return the status of a job that is suspended, in which its prepare pod is counted."""
    status = world.job.status
    uncounted = render.tries_of_preparation(status)
    if any(pod.retry >= uncounted for pod in _prepare_pods(world)):
        return status.replace(prepare_interruptions=status.prepare_interruptions + 1)
    return status


def _create(world: World, image: str, digest: str, settings: Settings) -> Decision:
    job = world.job
    if job.status.next_attempt_time and world.now < job.status.next_attempt_time:
        return _wait(world, _backing_off(job.status))
    try:
        storage_overlap.check(job)
        template_rules.check(job)
        pod = render.prepare_pod(job, image, digest)
        (worker,) = render.worker_pods(_provisional(job, image, settings), 0, [0])
    except UnrenderableError as error:
        return _refused(world, error.reason, str(error))
    if world.occupied:
        return _wait_for_storage(world, world.occupied)
    if world.refusal:
        return _refused(world, world.refusal.reason, world.refusal.message)
    situation = Situation("Preparing", message=_PREPARING)
    # The pod is created without a dry run, because nothing is committed with it. If one was refused
    # before, dry runs come first until one is admitted. A worker is always checked, since its
    # refusal would otherwise be found only after the preparation.
    dry_run = pod if refused_condition(world) else None
    return Decision(
        status=describe(world, job.status, situation, creating=True),
        create=[pod],
        check=Check(
            claims=tuple(inputs.claims(job)),
            pod=dry_run,
            later=worker,
            gang=job.spec.workers.replicas,
        ),
    )


_UNKNOWN = PrepareResult(
    prepared_digest="",
    run_digest="",
    model_revision="",
    parameter_count=0,
    data=DataSummary(examples=1, rows=1, tokens=1, trained_tokens=1, packing_efficiency=1),
)


def _provisional(job: Job, image: str, settings: Settings) -> Job:
    """Return the job with which a worker can be rendered before anything is prepared."""
    plan, _ = resolve(job.spec, _UNKNOWN, settings.device_types)
    resolved = Resolved(
        image=image, model_revision="", prepared_digest="", run_digest="", parameter_count=0
    )
    return job.with_status(job.status.replace(attempt=1, resolved=resolved, plan=plan))


def _wait_for_storage(world: World, occupied: Refusal) -> Decision:
    """Wait without any request: the cache of jobs shows when the other job has ended."""
    situation = Situation("Pending", occupied.reason, occupied.message, accepted=False)
    return Decision(describe(world, world.job.status, situation), requeue_after=RECHECK)


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
        return commit_first(world, images.frozen(image, pod.image_id), prepared, settings)
    reason, message = reason_and_message(pod)
    if was_killed(end):
        message = killed_message(message, pod)
    text = message or f"the prepare pod ended with exit code {end.exit_code}"
    if meaning(end.exit_code).waits:
        return _interrupt(world, reason, text, settings.restart_backoff * BackOff.STORAGE)
    if is_permanent(end.exit_code, prepare=True):
        return finished.fail(world, status, reason, text)
    return _retry(world, reason, text, settings)


def _interrupted(world: World, pod: Pod, settings: Settings) -> Decision:
    reason = reasons.BACK_OFF
    if pod.failure:
        reason, why = pod.failure
    elif pod.ended and pod.ended.unknown:
        why = "its node or the container runtime was restarted"
    else:
        why = "it was evicted or deleted"
    return _interrupt(world, reason, f"pod {nodes.place(pod)}: {why}", settings.restart_backoff)


def _interrupt(world: World, reason: str, problem: str, backoff: float) -> Decision:
    """Count an end that is not a failure: the job waits longer each time and never fails."""
    status, count = world.job.status, world.job.status.prepare_interruptions + 1
    status = status.replace(
        prepare_interruptions=count,
        prepare_problem=problem,
        next_attempt_time=_after(world, backoff, count),
    )
    return _count(world, status, reason, problem)


def _retry(world: World, reason: str, message: str, settings: Settings) -> Decision:
    status = world.job.status
    if status.prepare_failures >= RETRIES:
        text = f"{message} (preparing failed {RETRIES + 1} times)"
        return finished.fail(world, status, reason, text)
    status = status.replace(
        prepare_failures=status.prepare_failures + 1,
        prepare_problem=message,
        next_attempt_time=_after(world, settings.restart_backoff, status.prepare_failures + 1),
    )
    return _count(world, status, reason, message)


def _after(world: World, backoff: float, count: int) -> datetime:
    return world.now + timedelta(seconds=restart.backoff_seconds(backoff, count))


def _count(world: World, status: FineTuneJobStatus, reason: str, problem: str) -> Decision:
    """Write down that a prepare pod ended before it is deleted, so that it is counted once.

    The message, which becomes an event, has the whole problem; the status keeps its beginning.
    """
    text = f"{problem[:900]}; {_next_try(status)}"
    situation = Situation("Preparing", reason[:64], text)
    return Decision(describe(world, status, situation), commits=True, requeue_after=0)


def commit_first(world: World, image: str, prepared: PrepareResult, settings: Settings) -> Decision:
    """Commit attempt 1, with the resolved inputs and the plan that the run keeps from now on.

    The job fails instead if its model does not fit into the devices.
    """
    job = world.job
    try:
        plan, data = resolve(job.spec, prepared, settings.device_types)
    except DoesNotFitError as error:
        return finished.fail(world, job.status, reasons.DOES_NOT_FIT, str(error))
    except UnrenderableError as error:
        return _refused(world, error.reason, str(error))
    status = job.status.replace(
        attempt=1,
        next_attempt_time=None,
        prepare_problem=None,
        resolved=Resolved(
            image=image,
            model_revision=prepared.model_revision,
            prepared_digest=prepared.prepared_digest,
            run_digest=prepared.run_digest,
            parameter_count=prepared.parameter_count,
            model_facts=prepared.model_facts,
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
    if world.occupied:
        return _wait_for_storage(world, world.occupied)
    if world.refusal:
        return _refused(world, world.refusal.reason, world.refusal.message)
    situation = creating_pods(job.spec.workers.replicas)
    return Decision(
        describe(world, status, situation),
        check=render.check_of_gang(job.with_status(status), first),
        prepared=prepared,
        commits=True,
        requeue_after=0,
    )


def _backing_off(status: FineTuneJobStatus) -> Situation:
    problem = f"{status.prepare_problem}; " if status.prepare_problem else ""
    return Situation("Preparing", reasons.BACK_OFF, problem + _next_try(status))


def _next_try(status: FineTuneJobStatus) -> str:
    failures, interruptions = status.prepare_failures, status.prepare_interruptions
    parts = [f"preparing failed {_times(failures)}"] if failures else []
    if interruptions:
        parts.append(f"tried {_times(interruptions)} so far")
    at = status.next_attempt_time
    return "; ".join([*parts, f"trying again at {nodes.clock(at)}" if at else "trying again"])


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


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
