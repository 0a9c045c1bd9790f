"""How an attempt is ended: the outcome and what follows are written before any pod is deleted."""

from datetime import datetime

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode, meaning
from finetune_api.status import Attempt, FineTuneJobStatus, Phase
from finetune_operator.plan import attempts, avoided_nodes, gang_text, restart
from finetune_operator.plan.decision import RECHECK, SHORT_GRACE, Decision, Delete
from finetune_operator.plan.describe import Situation, describe
from finetune_operator.plan.observe import Pod, World, termination_result
from finetune_operator.plan.outcomes import RESTARTED, STOPS
from finetune_operator.plan.stops import StopRequest
from finetune_operator.plan.verdict import (
    Verdict,
    permanent_failure,
    reason_and_message,
    saved_progress,
    success,
)
from finetune_operator.settings import Settings

_STOPPING_PHASES: dict[str, Phase] = {
    reasons.SUSPENDED: "Suspending",
    reasons.GANG_INCOMPLETE: "Restarting",
    reasons.CONFIGURATION_CHANGED: "Restarting",
    reasons.HANG: "Restarting",
}

_REDONE = "; steps after the last checkpoint are redone"


def request_stop(world: World, status: FineTuneJobStatus, request: StopRequest) -> Decision:
    """Write down why the gang is to stop. The next plan, made from that status, stops it."""
    attempt = attempts.current(status)
    attempt = attempt.replace(stop_reason=request.reason, message=request.message[:1024])
    status = attempts.replace_current(status, attempt)
    return Decision(
        describe(world, status, _stopping(attempt, world.gang(attempt.number))),
        commits=True,
        requeue_after=0,
    )


def stop(world: World, status: FineTuneJobStatus, gang: list[Pod], settings: Settings) -> Decision:
    """Delete the pods of a gang that is to stop, and close the attempt when all are over."""
    attempt = attempts.current(status)
    alive = [pod for pod in gang if not pod.over(world.now)]
    if not alive:
        return close(world, status, gang, _verdict_after_stop(attempt, gang), settings)
    grace = None if STOPS[attempt.stop_reason or ""].saves else SHORT_GRACE
    situation = _stopping(attempt, alive)
    return Decision(
        describe(world, status, situation), delete=deletions(alive, grace), requeue_after=RECHECK
    )


def deletions(alive: list[Pod], grace: int | None = SHORT_GRACE) -> list[Delete]:
    """Return deletions of the workers that are not being deleted yet.

    `grace` is in seconds; None means the pod's own grace period. The default is short, because a
    rank whose peer is dead cannot save and only uses device time.
    """
    return [Delete(pod.name, pod.uid, grace) for pod in alive if not pod.deletion]


def _stopping(attempt: Attempt, alive: list[Pod]) -> Situation:
    reason = attempt.stop_reason or ""
    saving = " to save and end" if STOPS[reason].saves else " to end"
    text = f"{attempt.message}; waiting for {gang_text.counted(len(alive), 'worker')}{saving}"
    text = "; ".join([text, *gang_text.on_silent_nodes(alive)])
    return Situation(_STOPPING_PHASES.get(reason, "Running"), reason, text[:1024])


def _verdict_after_stop(attempt: Attempt, gang: list[Pod]) -> Verdict:
    """Return the verdict on a gang that the operator stopped.

    Success, and a failure that is permanent, take precedence over the stop request.
    """
    ends = {pod.index: pod.ended for pod in gang if pod.ended}
    codes = {index: end.exit_code for index, end in ends.items()}
    if len(codes) == attempt.workers and set(codes.values()) == {0}:
        return success()
    if failure := permanent_failure(gang):
        return failure
    reason = attempt.stop_reason or ""
    ending, text = STOPS[reason], attempt.message or reason
    if not ending.saves or not attempt.running_time:
        return Verdict(ending, reason, text)
    if unsaved := _unsaved(gang):
        end = unsaved.ended
        assert end is not None
        found, message = reason_and_message(unsaved)
        how = f"exit code {end.exit_code}"
        why = f"{message} ({found}, {how})" if message else f"{how} ({found})"
        text += f"; worker {unsaved.index} could not save: {why}{_REDONE}"
        return Verdict(ending, reason, text[:1024], unsaved.index, end.exit_code, unsaved.node)
    missing = len(codes) < attempt.workers
    text += f"; not every worker could save{_REDONE}" if missing else f"; {saved_progress(gang)}"
    return Verdict(ending, reason, text[:1024])


def _unsaved(gang: list[Pod]) -> Pod | None:
    """Return the worker whose end explains why a gang that was to save could not, or None."""
    failed = [
        (meaning(pod.ended.exit_code).consequence, pod.ended.finished, pod.index, pod)
        for pod in gang
        if pod.ended and pod.ended.exit_code not in (0, ExitCode.STOPPED)
    ]
    return min(failed, key=lambda failure: failure[:3])[-1] if failed else None


def close(
    world: World,
    status: FineTuneJobStatus,
    gang: list[Pod],
    verdict: Verdict,
    settings: Settings,
) -> Decision:
    """Write down how the attempt ended and what follows."""
    attempt = attempts.current(status)
    end = _completion_time(gang, attempt, world.now)
    attempt = attempt.replace(
        outcome=verdict.outcome,
        reason=verdict.reason,
        message=verdict.message,
        worker=verdict.worker,
        node=verdict.node,
        exit_code=verdict.exit_code,
        completion_time=end,
        active_seconds=_active_seconds(attempt, end),
    )
    if verdict.outcome == "Succeeded":
        return _close_succeeded(world, attempts.replace_current(status, attempt), gang)
    before = restart.previous_failure(status.attempts)
    following = restart.decide(
        status,
        verdict,
        repeated=restart.repeated_failure(verdict, attempt.last_step, before),
        progressed=(attempt.last_step or 0) > attempts.highest_step(status, before=attempt.number),
        max_restarts=world.job.spec.run_policy.max_restarts,
        backoff=settings.restart_backoff,
        jitter=restart.jitter(world.job.uid, attempt.number),
        now=world.now,
    )
    counted = following.counted > status.counted_restarts
    message = verdict.message + (f" ({following.why})" if following.why else "")
    attempt = attempt.replace(counted=counted, message=message[:1024])
    # An attempt that ended before its first step failed at the checkpoint from which it resumed.
    saved = status.latest_checkpoint.step if status.latest_checkpoint else 0
    step = max(attempt.last_step or 0, attempt.first_step or 0, saved)
    follows = following.at is not None and verdict.outcome in RESTARTED
    status = attempts.replace_current(status, attempt).replace(
        restarts=status.restarts + follows,
        counted_restarts=following.counted,
        next_attempt_time=following.at,
        last_failure_step=step if counted else status.last_failure_step,
        avoided_nodes=avoided_nodes.after(status, verdict),
    )
    next_text = "; ".join(["ending the other workers", *gang_text.on_silent_nodes(gang)])
    situation = between_attempts(world, status, next_text)
    return Decision(describe(world, status, situation), commits=True, requeue_after=0)


def _close_succeeded(world: World, status: FineTuneJobStatus, gang: list[Pod]) -> Decision:
    """Write down the output with the outcome; the next plan, from that status, ends the job.

    The pods that prove the success may be gone when the job is planned again.
    """
    result = termination_result(gang)
    status = status.replace(output=result.output if result else None)
    situation = Situation("Running", stage=status.stage)
    return Decision(describe(world, status, situation), commits=True, requeue_after=0)


def between_attempts(world: World, status: FineTuneJobStatus, next_text: str) -> Situation:
    """Return the situation of a job whose newest attempt has ended; `next_text` is what follows."""
    attempt = attempts.current(status)
    phase: Phase = "Restarting" if status.next_attempt_time else "Running"
    if world.job.spec.suspend and status.next_attempt_time:
        phase = "Suspending"
    text = f"attempt {attempt.number}: {attempt.message}; {next_text}"
    return Situation(phase, attempt.reason or "", text[:1024])


def _completion_time(gang: list[Pod], attempt: Attempt, now: datetime) -> datetime:
    """Return when the last worker ended, but not before the gang ran, and not in the future.

    The clock of a node may be ahead of the operator's, or behind it.
    """
    ends = [pod.ended.finished for pod in gang if pod.ended]
    if not ends or len(ends) < len(gang):
        return now
    return min(max(*ends, attempt.running_time or attempt.start_time), now)


def _active_seconds(attempt: Attempt, end: datetime) -> int:
    if attempt.running_time is None:
        return 0
    return max(0, int((end - attempt.running_time).total_seconds()))
