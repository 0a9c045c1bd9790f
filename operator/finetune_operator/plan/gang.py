"""An attempt: one gang from its commit to the moment when nothing of it is left.

The attempt exists from the moment its commit was written; its pods are made from that very status.
Its outcome is written before its survivors are deleted, and the next attempt is committed only when
every pod of it is over. That, and the fence on storage, is why two gangs never train at once.
"""

from datetime import datetime

from finetune_api.run import Report, Result
from finetune_api.status import Attempt, FineTuneJobStatus, Phase
from finetune_operator.plan import failure, restart, usage
from finetune_operator.plan import pods as render
from finetune_operator.plan.decision import Check, Decision, Delete
from finetune_operator.plan.describe import Situation, describe, waiting
from finetune_operator.plan.failure import Verdict
from finetune_operator.plan.finish import failed, succeeded
from finetune_operator.plan.observe import Pod, World
from finetune_operator.plan.progress import merge
from finetune_operator.settings import Settings

_GRACE = 10  # s: a rank in a collective with a dead peer cannot save, it only burns device time
_RECHECK = 10.0  # s


def running(world: World, settings: Settings) -> Decision:
    """Decide for a job whose newest attempt has no outcome yet."""
    job, replicas = world.job, world.job.spec.workers.replicas
    gang = world.gang(_current(job.status).number)
    status, attempt = _observe(world, gang)
    missing = set(range(replicas)) - {pod.index for pod in gang if not pod.gone}
    complete = attempt.created or not missing
    attempt = attempt.replace(created=complete)
    verdict = failure.verdict(gang, replicas, complete, world.now)
    status = _with_attempt(status, attempt)
    if verdict:
        return _close(world, status, gang, verdict, settings)
    if not complete:
        return _create(world, status, missing)
    if status.start_time is None and _all_ran(gang, replicas):
        status = status.replace(start_time=world.now)
    situation = _live(world, status, gang, replicas)
    # A consequence waits for its cause, and a report that stops coming is noticed, by the clock.
    return Decision(describe(world, status, situation), requeue_after=failure.SETTLE)


def between(world: World) -> Decision:
    """Decide for a job whose newest attempt has ended, and that is not finished."""
    job = world.job
    ended = _current(job.status)
    status, _ = _observe(world, world.gang(ended.number))
    older = [pod for pod in world.pods if pod.role == "worker"]
    alive = [pod for pod in older if not pod.over(world.now)]
    if alive:
        doomed = [Delete(pod.name, pod.uid, _GRACE) for pod in alive if not pod.deletion]
        situation = _restarting(status, ended, "ending the other workers")
        return Decision(describe(world, status, situation), delete=doomed, requeue_after=_RECHECK)
    if ended.outcome == "Succeeded":
        return _succeed(world, status)
    at = status.next_attempt_time
    if at is None:
        return failed(world, status, ended.reason or "Failed", ended.message or "")
    if world.now < at:
        situation = _restarting(status, ended, f"attempt {ended.number + 1} at {at:%H:%M:%S} UTC")
        wait = (at - world.now).total_seconds()
        return Decision(describe(world, status, situation), requeue_after=wait)
    return _commit(world, status, ended.number + 1)


def _current(status: FineTuneJobStatus) -> Attempt:
    return status.attempts[-1]


def _observe(world: World, gang: list[Pod]) -> tuple[FineTuneJobStatus, Attempt]:
    """Status and newest attempt with what pods and reports say now."""
    spec, status = world.job.spec, world.job.status
    said: Report | Result | None = world.report
    for pod in gang:
        if pod.index == 0 and pod.ended:
            said = pod.ended.result() or said
    status = merge(status, said)
    workers = spec.workers
    attempt = _current(status)
    attempt = usage.account(attempt, gang, workers.replicas, workers.devices_per_worker, world.now)
    attempt = usage.split(attempt, said.ledger if said else None, spec.world_size)
    if status.latest_checkpoint:
        attempt = attempt.replace(checkpoint_step=status.latest_checkpoint.step)
    return _with_attempt(status, attempt), attempt


def _with_attempt(status: FineTuneJobStatus, attempt: Attempt) -> FineTuneJobStatus:
    status = status.replace(attempts=[*status.attempts[:-1], attempt])
    return status.replace(usage=usage.total(status))


def _all_ran(gang: list[Pod], replicas: int) -> bool:
    return sum(1 for pod in gang if pod.running or pod.ended) == replicas


def _create(world: World, status: FineTuneJobStatus, missing: set[int]) -> Decision:
    job = world.job.with_status(status)
    if world.refusal:
        refused = Situation("Starting", world.refusal.reason, world.refusal.message, accepted=False)
        return Decision(describe(world, status, refused), requeue_after=_RECHECK)
    wanted = render.worker_pods(job, _highest_step(status.attempts[:-1], status))
    situation = Situation("Starting", message=f"creating {len(missing)} pods")
    old = [
        Delete(pod.name, pod.uid)
        for pod in world.pods
        if pod.role == "worker"
        and pod.attempt < _current(status).number - 1
        and not (pod.gone or pod.deletion)
    ]
    return Decision(
        describe(world, status, situation, creating=True),
        create=[render.service(job), *(wanted[index] for index in sorted(missing))],
        delete=old,  # the attempt before this one stays, for its logs
    )


def _live(world: World, status: FineTuneJobStatus, gang: list[Pod], replicas: int) -> Situation:
    if not _all_ran(gang, replicas):
        ready = sum(1 for pod in gang if pod.running)
        reason, message = waiting(gang) or ("", f"{ready} of {replicas} workers run")
        return Situation("Starting", reason, message)
    stage = world.report.stage if world.report else (status.stage or "LoadingModel")
    return Situation("Running", stage=stage)


def _close(
    world: World,
    status: FineTuneJobStatus,
    gang: list[Pod],
    verdict: Verdict,
    settings: Settings,
) -> Decision:
    """Write down how the attempt ended, and what follows, before anything is deleted."""
    attempt = _current(status)
    before = status.attempts[-2] if len(status.attempts) > 1 else None
    attempt = attempt.replace(
        outcome=verdict.outcome,
        reason=verdict.reason,
        message=verdict.message,
        worker=verdict.worker,
        exit_code=verdict.exit_code,
        completion_time=_last_end(gang) or world.now,
    )
    if verdict.outcome == "Succeeded":
        status = _with_attempt(status, attempt)
        # The next look, from what is now written, ends the job.
        return Decision(
            describe(world, status, Situation("Running", stage=status.stage)),
            commits=True,
            requeue_after=0,
        )
    best = _highest_step(status.attempts[:-1], status)
    step = attempt.last_step or attempt.first_step or 0
    after = restart.after(
        status,
        verdict,
        repeated=failure.repeats(verdict, attempt.last_step, before),
        progressed=(attempt.last_step or 0) > best,
        most=world.job.spec.run_policy.max_restarts,
        backoff=settings.restart_backoff,
        now=world.now,
    )
    counted = after.counted > status.counted_restarts
    message = verdict.message + (f" ({after.why_not})" if after.why_not else "")
    attempt = attempt.replace(counted=counted, message=message[:1024])
    status = _with_attempt(status, attempt).replace(
        counted_restarts=after.counted,
        next_attempt_time=after.at,
        last_failure_step=step if counted else status.last_failure_step,
    )
    situation = _restarting(status, attempt, "ending the other workers")
    return Decision(describe(world, status, situation), commits=True, requeue_after=0)


def _last_end(gang: list[Pod]) -> datetime | None:
    ends = [pod.ended.finished for pod in gang if pod.ended]
    return max(ends, default=None) if len(ends) == len(gang) else None


def _restarting(status: FineTuneJobStatus, ended: Attempt, then: str) -> Situation:
    phase: Phase = "Restarting" if status.next_attempt_time else "Running"
    text = f"attempt {ended.number}: {ended.message}; {then}"
    return Situation(phase, ended.reason or "", text[:1024])


def _succeed(world: World, status: FineTuneJobStatus) -> Decision:
    end = next((pod.ended for pod in world.gang(_current(status).number) if pod.index == 0), None)
    result = end.result() if end else None
    if result is None or result.output is None:
        text = "every worker ended with 0 but worker 0 left no result; is this the trainer image?"
        return failed(world, status, "NoResult", text)
    if not result.output.verified:
        text = f"the model at {result.output.location} was not verified"
        return failed(world, status, "OutputNotVerified", text)
    return succeeded(world, status, result.output)


def _commit(world: World, status: FineTuneJobStatus, number: int) -> Decision:
    attempt = Attempt(number=number, start_time=world.now)
    new = usage.fold(status.replace(attempts=[*status.attempts, attempt])).replace(
        attempt=number, restarts=status.restarts + 1, next_attempt_time=None, stage=None
    )
    pod = render.worker_pods(world.job.with_status(new), _highest_step(new.attempts[:-1], new))[0]
    if world.refusal:
        situation = Situation(
            "Restarting", world.refusal.reason, world.refusal.message, accepted=False
        )
        return Decision(describe(world, status, situation), commits=True, requeue_after=_RECHECK)
    situation = Situation("Starting", message=f"attempt {number}: creating the gang")
    return Decision(
        describe(world, new, situation), check=Check(pod=pod), commits=True, requeue_after=0
    )


def _highest_step(attempts: list[Attempt], status: FineTuneJobStatus) -> int:
    """The furthest step that any of these attempts finished; what comes up to it is redone."""
    steps = [attempt.last_step or 0 for attempt in attempts]
    if status.folded_attempts:
        steps.append(status.folded_attempts.last_step or 0)
    return max(steps, default=0)
