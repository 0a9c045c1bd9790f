"""How an attempt ends: its outcome, and what follows, are written before anything is deleted."""

from datetime import datetime

from finetune_api.exit_codes import ExitCode
from finetune_api.status import Attempt, FineTuneJobStatus, Phase
from finetune_operator.plan import attempts, failure, restart
from finetune_operator.plan.decision import RECHECK, Decision, Delete
from finetune_operator.plan.describe import Situation, describe
from finetune_operator.plan.failure import Verdict
from finetune_operator.plan.observe import Pod, World, last_words
from finetune_operator.plan.stops import CONSEQUENCES, GANG_INCOMPLETE, HANG, SUSPENDED, Stop
from finetune_operator.settings import Settings

GRACE = 10  # s: a rank in a collective with a dead peer cannot save, it only burns device time
_PHASES: dict[str, Phase] = {
    SUSPENDED: "Suspending",
    GANG_INCOMPLETE: "Restarting",
    HANG: "Restarting",
}


def ask(world: World, status: FineTuneJobStatus, wish: Stop) -> Decision:
    """Write down why the gang is to stop; the next look, from what is written, stops it."""
    attempt = attempts.current(status)
    attempt = attempt.replace(stop_reason=wish.reason, message=wish.message[:1024])
    status = attempts.updated(status, attempt)
    return Decision(
        describe(world, status, _stopping(attempt, len(world.gang(attempt.number)))),
        commits=True,
        requeue_after=0,
    )


def stop(world: World, status: FineTuneJobStatus, gang: list[Pod], settings: Settings) -> Decision:
    """Carry out what was asked, until no pod of the gang is left running."""
    attempt = attempts.current(status)
    alive = [pod for pod in gang if not pod.over(world.now)]
    if not alive:
        return close(world, status, gang, _stopped(attempt, gang), settings)
    grace = None if CONSEQUENCES[attempt.stop_reason or ""].saves else GRACE
    situation = _stopping(attempt, len(alive))
    return Decision(
        describe(world, status, situation), delete=deletions(alive, grace), requeue_after=RECHECK
    )


def deletions(alive: list[Pod], grace: int | None = GRACE) -> list[Delete]:
    """Of workers that are not over; `grace` in s, None: the pod's own."""
    return [Delete(pod.name, pod.uid, grace) for pod in alive if not pod.deletion]


def _stopping(attempt: Attempt, alive: int) -> Situation:
    reason = attempt.stop_reason or ""
    saving = " to save and end" if CONSEQUENCES[reason].saves else " to end"
    text = f"{attempt.message}; waiting for {alive} workers{saving}"
    return Situation(_PHASES.get(reason, "Running"), reason, text[:1024])


def _stopped(attempt: Attempt, gang: list[Pod]) -> Verdict:
    """The verdict on a gang that we stopped ourselves; what it did by itself before wins."""
    ends = {pod.index: pod.ended for pod in gang if pod.ended}
    codes = {index: end.exit_code for index, end in ends.items()}
    if len(codes) == attempt.workers and set(codes.values()) == {0}:
        return Verdict("Succeeded", "Completed", "", counted=False)
    own = failure.permanent(gang)
    if own:
        return own
    reason = attempt.stop_reason or ""
    consequence = CONSEQUENCES[reason]
    text = attempt.message or reason
    unsaved = sorted(i for i, code in codes.items() if code not in (0, ExitCode.STOPPED))
    if consequence.saves and attempt.running_time:
        saved = len(codes) == attempt.workers and not unsaved
        text += (
            f"; {failure.kept(gang)}"
            if saved
            else "; not every worker could save, what came after the last checkpoint is redone"
        )
    return Verdict(
        consequence.outcome,
        reason,
        text,
        counted=consequence.counted,
        permanent=consequence.permanent,
        backs_off=consequence.backs_off,
    )


def close(
    world: World,
    status: FineTuneJobStatus,
    gang: list[Pod],
    verdict: Verdict,
    settings: Settings,
) -> Decision:
    """Write down how the attempt ended and what follows."""
    attempt = attempts.current(status)
    end = _last_end(gang, attempt, world.now)
    attempt = attempt.replace(
        outcome=verdict.outcome,
        reason=verdict.reason,
        message=verdict.message,
        worker=verdict.worker,
        exit_code=verdict.exit_code,
        completion_time=end,
        active_seconds=_active(attempt, end),
    )
    if verdict.outcome == "Succeeded":
        # With the outcome: the pods that prove it may be gone when somebody else looks next.
        result = last_words(gang)
        status = attempts.updated(status, attempt).replace(output=result.output if result else None)
        situation = Situation("Running", stage=status.stage)
        # The next look, from what is now written, ends the job.
        return Decision(describe(world, status, situation), commits=True, requeue_after=0)
    before = failure.failed_before(status.attempts)
    after = restart.after(
        status,
        verdict,
        repeated=failure.repeats(verdict, attempt.last_step, before),
        progressed=(attempt.last_step or 0) > attempts.highest_step(status, before=attempt.number),
        most=world.job.spec.run_policy.max_restarts,
        backoff=settings.restart_backoff,
        jitter=restart.jitter(world.job.uid, attempt.number),
        now=world.now,
    )
    counted = after.counted > status.counted_restarts
    message = verdict.message + (f" ({after.why})" if after.why else "")
    attempt = attempt.replace(counted=counted, message=message[:1024])
    # An attempt that ended before its first step failed at the checkpoint from which it began.
    saved = status.latest_checkpoint.step if status.latest_checkpoint else 0
    step = max(attempt.last_step or 0, attempt.first_step or 0, saved)
    status = attempts.updated(status, attempt).replace(
        counted_restarts=after.counted,
        next_attempt_time=after.at,
        last_failure_step=step if counted else status.last_failure_step,
    )
    situation = ended(world, status, "ending the other workers")
    return Decision(describe(world, status, situation), commits=True, requeue_after=0)


def ended(world: World, status: FineTuneJobStatus, then: str) -> Situation:
    """What people see between two attempts."""
    attempt = attempts.current(status)
    phase: Phase = "Restarting" if status.next_attempt_time else "Running"
    if world.job.spec.suspend and status.next_attempt_time:
        phase = "Suspending"
    text = f"attempt {attempt.number}: {attempt.message}; {then}"
    return Situation(phase, attempt.reason or "", text[:1024])


def _last_end(gang: list[Pod], attempt: Attempt, now: datetime) -> datetime:
    """When the last worker ended, as far as the clocks of nodes agree with ours."""
    ends = [pod.ended.finished for pod in gang if pod.ended]
    if not ends or len(ends) < len(gang):
        return now
    return min(max(*ends, attempt.running_time or attempt.start_time), now)


def _active(attempt: Attempt, end: datetime) -> int:
    if attempt.running_time is None:
        return 0
    return max(0, int((end - attempt.running_time).total_seconds()))
