"""The policy for the time between two attempts.

The pods of the ended attempt are deleted; then the job ends, rests, waits for its back-off or
commits the next attempt. The next attempt is committed only when every pod of the attempts before
it is over. Together with the fence on storage, this is why two gangs never train at the same time.
"""

from datetime import timedelta

from finetune_api import reasons
from finetune_api.exit_codes import meaning
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_api.text import duration
from finetune_operator.plan import (
    attempts,
    avoided_nodes,
    configuration,
    ending,
    finished,
    images,
    nodes,
    resolve,
    restart,
    suspend,
    template_rules,
    usage,
)
from finetune_operator.plan import pods as render
from finetune_operator.plan.decision import RECHECK, Decision
from finetune_operator.plan.describe import Situation, creating_pods, describe
from finetune_operator.plan.observe import LOST_AFTER, Pod, World, termination_result
from finetune_operator.plan.template import UnrenderableError
from finetune_operator.plan.verdict import not_ended
from finetune_operator.settings import Settings


def decide(world: World, settings: Settings) -> Decision:
    """Decide for a job that is not finished and whose newest attempt has ended."""
    status = world.job.status
    attempt = attempts.current(status)
    if not attempt.settled:
        status = attempts.refresh(world, world.gang(attempt.number))
    workers = [pod for pod in world.pods if pod.role == "worker"]
    alive = [pod for pod in workers if not pod.over(world.now)]
    if alive:
        status = _name_silent_node(status, alive)
        deletions = ending.deletions(alive)
        situation = ending.between_attempts(world, status, _waiting_text(status, alive))
        return Decision(describe(world, status, situation), delete=deletions, requeue_after=RECHECK)
    if not attempt.settled:
        final = usage.finalize(attempts.current(status), workers)
        status = attempts.replace_current(status, final)
    if attempt.outcome == "Succeeded":
        return _succeed(world, status)
    if status.next_attempt_time is None:
        return finished.fail(world, status, attempt.reason or "Failed", attempt.message or "")
    if world.job.spec.suspend:
        return suspend.hold(world, status)
    wait = (status.next_attempt_time - world.now).total_seconds()
    if wait > 0:
        text = _next_attempt_text(world, status, settings)
        situation = ending.between_attempts(world, status, text)
        return Decision(describe(world, status, situation), requeue_after=wait)
    return _commit(world, status, attempt)


def _waiting_text(status: FineTuneJobStatus, alive: list[Pod]) -> str:
    """Return which pod of an ended attempt is waited for, and for how long at most."""
    text = f"waiting for the end of {nodes.places(alive)}"
    deletions = [pod.deletion for pod in alive if pod.deletion]
    if status.next_attempt_time is None or len(deletions) < len(alive):
        return text
    until = max(deletions) + timedelta(seconds=LOST_AFTER)
    number = attempts.current(status).number + 1
    at = nodes.clock(max(until, status.next_attempt_time))
    return f"{text}; attempt {number} starts at {at} at the latest"


def _name_silent_node(status: FineTuneJobStatus, alive: list[Pod]) -> FineTuneJobStatus:
    """Name the node of a worker that has not ended, once it is known not to answer.

    A gang ends sooner after the loss of a node than the node lifecycle controller notices it.
    """
    attempt = attempts.current(status)
    pod = next((pod for pod in alive if pod.silent_since), None)
    if pod is None or attempt.exit_code is None or not meaning(attempt.exit_code).consequence:
        return status
    text = f"worker {pod.index} was lost: its pod {pod.name} is on {nodes.silence(pod)}"
    if (attempt.message or "").startswith(text):
        return status
    message = f"{text}; {(attempt.message or '').removeprefix(not_ended(pod))}"[:1024]
    status = attempts.replace_current(status, attempt.replace(node=pod.node, message=message))
    if pod.node is None:
        return status
    known = avoided_nodes.with_fault(status.avoided_nodes, pod.node, reasons.WORKER_LOST)
    return status.replace(avoided_nodes=known)


def _next_attempt_text(world: World, status: FineTuneJobStatus, settings: Settings) -> str:
    attempt, limit = attempts.current(status), world.job.spec.run_policy.max_restarts
    assert status.next_attempt_time is not None
    text = f"attempt {attempt.number + 1} at {nodes.clock(status.next_attempt_time)}"
    if not attempt.counted:
        return text
    wait = restart.backoff_seconds(settings.restart_backoff, status.counted_restarts)
    return f"restart {status.counted_restarts} of {limit}, back-off {duration(wait)}: {text}"


def _succeed(world: World, status: FineTuneJobStatus) -> Decision:
    output = status.output
    if output is None:  # earlier operators did not write it with the outcome
        result = termination_result(world.gang(attempts.current(status).number))
        output = result.output if result else None
    if output is None:
        text = (
            "every worker exited with 0 but worker 0 left no result; check that workers.image is "
            "a trainer image"
        )
        return finished.fail(world, status, reasons.NO_RESULT, text)
    if not output.verified:
        text = f"the trainer image did not verify the model at {output.location}"
        return finished.fail(world, status, reasons.OUTPUT_NOT_VERIFIED, text)
    return finished.succeed(world, status, output)


def _commit(world: World, status: FineTuneJobStatus, ended: Attempt) -> Decision:
    """Begin attempt n+1, with the changes that a user may have made while it was suspended."""
    spec, number = world.job.spec, ended.number + 1
    attempt = usage.new_attempt(spec, number, world.now)
    folded = usage.fold(status, usage.KEPT - 1)
    new = folded.replace(
        attempt=number,
        attempts=[*folded.attempts, attempt],
        # Older operators counted a restart only here.
        restarts=max(status.restarts, status.counted_restarts),
        progress=attempts.progress_of_next(status),
        next_attempt_time=None,
        # Nodes may have been repaired or replaced during a suspension.
        avoided_nodes=[] if ended.outcome == "Suspended" else status.avoided_nodes,
        stage=None,
        plan=status.plan and resolve.rescaled(status.plan, spec, status.resolved),
        resolved=status.resolved
        and status.resolved.replace(
            image=images.following(spec.workers.image, status.resolved.image)
        ),
    )
    new = configuration.frozen(world.job.with_status(new))
    highest = attempts.highest_step(new, before=number)
    try:
        if ended.outcome == "Suspended":  # the template may have been changed
            template_rules.check(world.job)
        (first,) = render.worker_pods(world.job.with_status(new), highest, [0])
    except UnrenderableError as error:
        return _refused(world, status, error.reason, str(error))
    if world.refusal:
        return _refused(world, status, world.refusal.reason, world.refusal.message)
    situation = creating_pods(spec.workers.replicas)
    return Decision(
        describe(world, new, situation),
        check=render.check_of_gang(world.job.with_status(new), first),
        commits=True,
        requeue_after=0,
    )


def _refused(world: World, status: FineTuneJobStatus, reason: str, message: str) -> Decision:
    situation = Situation("Restarting", reason, message, accepted=False)
    return Decision(describe(world, status, situation), commits=True, requeue_after=RECHECK)
