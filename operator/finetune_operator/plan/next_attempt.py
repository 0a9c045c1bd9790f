"""Between two attempts: the old gang goes, then the job ends, rests, waits or starts again.

The next attempt is committed only when every pod of the ones before is over. That, and the fence on
storage, is why two gangs never train at once.
"""

from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_api.text import duration
from finetune_operator.plan import attempts, ending, resolve, restart, suspend, usage
from finetune_operator.plan import pods as render
from finetune_operator.plan.decision import RECHECK, Check, Decision
from finetune_operator.plan.describe import Situation, describe
from finetune_operator.plan.finish import failed, succeeded
from finetune_operator.plan.observe import World, last_words
from finetune_operator.plan.template import UnrenderableError
from finetune_operator.settings import Settings


def between(world: World, settings: Settings) -> Decision:
    """Decide for a job whose newest attempt has ended, and that is not finished."""
    status = world.job.status
    attempt = attempts.current(status)
    if not attempt.settled:
        status = attempts.observed(world, world.gang(attempt.number))
    older = [pod for pod in world.pods if pod.role == "worker"]
    alive = [pod for pod in older if not pod.over(world.now)]
    if alive:
        doomed = ending.deletions(alive)
        situation = ending.ended(world, status, f"waiting for {alive[0].name} to end")
        return Decision(describe(world, status, situation), delete=doomed, requeue_after=RECHECK)
    if not attempt.settled:
        status = attempts.updated(status, usage.settle(attempts.current(status), older))
    if attempt.outcome == "Succeeded":
        return _succeed(world, status)
    if status.next_attempt_time is None:
        return failed(world, status, attempt.reason or "Failed", attempt.message or "")
    if world.job.spec.suspend:
        return suspend.hold(world, status)
    wait = (status.next_attempt_time - world.now).total_seconds()
    if wait > 0:
        situation = ending.ended(world, status, _when(world, status, settings))
        return Decision(describe(world, status, situation), requeue_after=wait)
    return _commit(world, status, attempt)


def _when(world: World, status: FineTuneJobStatus, settings: Settings) -> str:
    attempt, most = attempts.current(status), world.job.spec.run_policy.max_restarts
    text = f"attempt {attempt.number + 1} at {status.next_attempt_time:%H:%M:%S} UTC"
    if not attempt.counted:
        return text
    wait = restart.wait(settings.restart_backoff, status.counted_restarts)
    return f"restart {status.counted_restarts} of {most}, back-off {duration(wait)}: {text}"


def _succeed(world: World, status: FineTuneJobStatus) -> Decision:
    output = status.output
    if output is None:  # an operator before this one did not write it down with the outcome
        words = last_words(world.gang(attempts.current(status).number))
        output = words.output if words else None
    if output is None:
        text = "every worker ended with 0 but worker 0 left no result; is this the trainer image?"
        return failed(world, status, "NoResult", text)
    if not output.verified:
        text = f"the model at {output.location} was not verified"
        return failed(world, status, "OutputNotVerified", text)
    return succeeded(world, status, output)


def _commit(world: World, status: FineTuneJobStatus, ended: Attempt) -> Decision:
    """Attempt n+1, with what may have been changed while the job was suspended."""
    spec, number = world.job.spec, ended.number + 1
    attempt = usage.begin(spec, number, world.now)
    again = ended.outcome in restart.AGAIN
    room = usage.fold(status, usage.KEPT - 1)
    new = room.replace(
        attempt=number,
        attempts=[*room.attempts, attempt],
        restarts=status.restarts + (1 if again else 0),
        next_attempt_time=None,
        stage=None,
        plan=status.plan and resolve.rescaled(status.plan, spec),
        resolved=status.resolved
        and status.resolved.replace(image=spec.workers.image or status.resolved.image),
    )
    highest = attempts.highest_step(new, before=number)
    try:
        (first,) = render.worker_pods(world.job.with_status(new), highest, [0])
    except UnrenderableError as error:
        return _refused(world, status, error.reason, str(error))
    if world.refusal:
        return _refused(world, status, world.refusal.reason, world.refusal.message)
    situation = Situation("Starting", message=f"creating {spec.workers.replicas} pods")
    return Decision(
        describe(world, new, situation), check=Check(pod=first), commits=True, requeue_after=0
    )


def _refused(world: World, status: FineTuneJobStatus, reason: str, message: str) -> Decision:
    situation = Situation("Restarting", reason, message, accepted=False)
    return Decision(describe(world, status, situation), commits=True, requeue_after=RECHECK)
