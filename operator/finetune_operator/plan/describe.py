"""The parts of a status that people read, rendered together so that they never contradict.

These are phase, reason, stage, message, columns and conditions. All are derived from the facts in
the status and from a `Situation`. Messages contain no running clock, so that planning the same
world twice gives the same status.
"""

from dataclasses import dataclass, replace

from finetune_api import names, reasons
from finetune_api.progress import Evaluation, Progress, Stage
from finetune_api.status import (
    CELL_MAX,
    FINISHED,
    Attempt,
    Condition,
    Display,
    FineTuneJobStatus,
    Phase,
    WorkerCounts,
)
from finetune_api.text import duration
from finetune_operator.plan import attempts, gang_text, nodes
from finetune_operator.plan.observe import Pod, Refusal, World
from finetune_operator.plan.outcomes import RESTARTED

_UNBOUND = "unbound immediate PersistentVolumeClaims"  # part of the scheduler's message


@dataclass(frozen=True)
class Situation:
    """What a policy found: the facts that are not in the status."""

    phase: Phase
    reason: str = ""
    message: str = ""
    stage: Stage | None = None
    accepted: bool = True


def creating_pods(number: int) -> Situation:
    """Return the situation of a gang, a number of whose pods are created now."""
    return Situation("Starting", message=f"creating {gang_text.counted(number, 'pod')}")


def why_waiting(pods: list[Pod]) -> tuple[str, str] | None:
    """Return reason and message of the scheduler or node why a pod cannot run yet, or None."""
    gated = [pod for pod in pods if pod.gates and not pod.gone]
    if gated:
        text = f"{len(gated)} of {len(pods)} pods are held by {', '.join(gated[0].gates)}"
        return reasons.SCHEDULING_GATED, text[:1024]
    for pod in pods:
        if pod.silent_since and not (pod.gone or pod.ended):
            return reasons.NODE_NOT_READY, f"waiting for {nodes.place(pod)}"
        if pod.unschedulable:
            unbound = _UNBOUND in pod.unschedulable
            reason = reasons.VOLUME_NOT_BOUND if unbound else reasons.UNSCHEDULABLE
            return reason, f"{pod.name}: {pod.unschedulable}"[:1024]
        if pod.waiting:
            return pod.waiting[0][:64], f"{pod.name}: {pod.waiting[1]}"[:1024]
        if pod.notice and pod.scheduled:
            reason, why = pod.notice
            node = f"node {pod.node}" if pod.node else "a node"
            since = f"is bound to {node} since {nodes.clock(pod.scheduled)}"
            return reason[:64], f"{pod.name} {since} and does not run yet: {why}"[:1024]
    return None


def describe(
    world: World, status: FineTuneJobStatus, situation: Situation, *, creating: bool = False
) -> FineTuneJobStatus:
    """Return the status as people see it.

    `creating` is whether pods are still missing, in which case an earlier refusal is still shown.
    """
    if world.failure and situation.accepted and situation.phase not in FINISHED:
        situation = _failing(status, situation, world.failure, creating=creating)
    elif creating and (old := refused_condition(world)):
        phase = world.job.status.phase or situation.phase
        situation = Situation(phase, old.reason, old.message, accepted=False)
    gang = world.gang(status.attempt) if status.attempt else []
    if situation.phase == "Running" and not situation.reason:
        situation = _noticed(world, gang, situation)
    message = situation.message or _progress_sentence(status, situation)
    message += _notices(status, situation, gang)
    counts = _workers(world, status)
    status = status.replace(
        observed_generation=world.job.generation,
        phase=situation.phase,
        stage=situation.stage,
        reason=situation.reason or None,
        message=message[:1024],
        workers=counts,
    )
    status = status.replace(display=_display(status))
    return status.replace(conditions=_conditions(world, status, situation))


def _noticed(world: World, gang: list[Pod], situation: Situation) -> Situation:
    """Return the situation of a gang that runs, with what may keep it from going on."""
    if gang_text.silent(gang):
        return replace(situation, reason=reasons.NODE_NOT_READY)
    if world.silent:
        # Without any report of this attempt, it is not known what the workers do.
        stage = situation.stage if world.report else None
        return replace(situation, reason=reasons.REPORT_UNREACHABLE, stage=stage)
    return situation


def _notices(status: FineTuneJobStatus, situation: Situation, gang: list[Pod]) -> str:
    """Return what follows the progress of a gang that runs."""
    if situation.phase != "Running" or situation.message:
        return ""
    notices = gang_text.on_silent_nodes(gang)
    if problem := _save_problem(status):
        notices.append(f"the newest save failed: {problem}")
    if status.progress and status.progress.kernel_problem:
        notices.append(status.progress.kernel_problem)
    return "".join(f"; {notice}" for notice in notices)


def _save_problem(status: FineTuneJobStatus) -> str | None:
    """Return why the newest save failed, or None if it did not."""
    return status.progress.checkpoint_problem if status.progress else None


def _failing(
    status: FineTuneJobStatus, situation: Situation, failure: Refusal, *, creating: bool
) -> Situation:
    """Return the situation of a job for which a request fails again and again."""
    text = situation.message or _progress_sentence(status, situation)
    message = failure.message if creating else f"{text}; {failure.message}"
    return replace(situation, reason=failure.reason, message=message[:1024], accepted=False)


def refused_condition(world: World) -> Condition | None:
    """Return the condition Accepted of the current status if it is False, else None."""
    conditions = world.job.status.conditions
    return next((c for c in conditions if c.type == "Accepted" and c.status == "False"), None)


def _workers(world: World, status: FineTuneJobStatus) -> WorkerCounts:
    gang = world.gang(status.attempt) if status.attempt else []
    present = [pod for pod in gang if not pod.gone]
    return WorkerCounts(
        desired=status.attempts[-1].workers if gang else world.job.spec.workers.replicas,
        running=sum(1 for pod in present if pod.running and not pod.silent_since),
        pending=sum(1 for pod in present if not (pod.running or pod.ended or pod.finished)),
        failed=sum(1 for pod in gang if pod.failure or (pod.ended and pod.ended.exit_code)),
    )


_WITHOUT_STEPS = ("LoadingModel", "Exporting")
_BEFORE_THE_FIRST_STEP = {
    "Evaluating": "measuring the validation loss before the first step",
    "Training": "working on the first step",
}


def _progress_sentence(status: FineTuneJobStatus, situation: Situation) -> str:
    progress = status.progress
    if situation.reason == reasons.REPORT_UNREACHABLE:
        return _without_report(status)
    if situation.stage == "LoadingModel" or progress is None:
        text = _BEFORE_THE_FIRST_STEP.get(situation.stage or "", "loading the model")
        return text + _continuing(status)
    if situation.stage == "Exporting":
        return f"exporting the model of step {progress.step}"
    parts = [_step(progress)]
    if situation.stage == "Training" and progress.eta_seconds and not situation.reason:
        parts.append(f"about {duration(progress.eta_seconds)} left")
    return ", ".join(parts)


def _continuing(status: FineTuneJobStatus) -> str:
    """Return a clause on where a restarted gang begins, and why it was restarted."""
    if len(status.attempts) < 2 or status.attempts[-2].outcome not in RESTARTED:
        return ""
    ended, step = status.attempts[-2], status.progress.step if status.progress else 0
    where = f"continuing after step {step}" if step else "starting again"
    return f"; {where}, because attempt {ended.number} ended with {_cause(ended)}"


def _step(progress: Progress) -> str:
    text = f"step {progress.step} of {progress.total_steps}"
    loss = progress.train_loss
    return text if loss is None else f"{text}, loss {_loss(loss)}"


def _without_report(status: FineTuneJobStatus) -> str:
    """Return what is known of a gang whose worker 0 cannot be asked for its report."""
    known = "all workers run"
    if status.progress and attempts.current(status).last_step is not None:
        known = f"{_step(status.progress)} in the last report"
    return (
        f"{known}; no report of worker 0 arrives: open port {names.REPORT_PORT} of the pods to the "
        "operator; training, checkpoints, restarts and the export do not need it, but progress is "
        "not shown"
    )


def _loss(value: float) -> str:
    """Return a loss as text; one that diverges is shortened, since a column has 32 characters."""
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"


def _validation(found: Evaluation | None) -> str | None:
    """Return the newest and the best validation loss, once one was measured."""
    if found is None:
        return None
    last = found.baseline if found.last is None else found.last
    if last is None:
        return None
    return _loss(last) if found.best is None else f"{_loss(last)}, best {_loss(found.best)}"


def _cause(attempt: Attempt) -> str:
    """Return why an attempt ended and where, as a cell of a column."""
    reason, step = attempt.reason or "", attempt.last_step
    text = reason if step is None else f"{reason} at step {step}"
    if len(text) <= CELL_MAX:
        return text
    return reason if len(reason) <= CELL_MAX else reason[: CELL_MAX - 1] + "…"


def _display(status: FineTuneJobStatus) -> Display:
    progress, usage, counts = status.progress, status.usage, status.workers
    show: dict[str, str] = {}
    if progress:
        percent = min(100, 100 * progress.step // max(1, progress.total_steps))
        show |= {"progress": f"{percent}%", "step": f"{progress.step}/{progress.total_steps}"}
        if progress.train_loss is not None:
            show["loss"] = _loss(progress.train_loss)
        trains = status.phase == "Running" and status.stage not in _WITHOUT_STEPS
        if progress.eta_seconds and trains and not status.reason:
            show["eta"] = duration(progress.eta_seconds)
    if loss := _validation(status.evaluation):
        show["validation"] = loss
    if ended := attempts.restarted(status):
        show["restarted"] = _cause(ended[-1])
    if usage:
        show["gpu_hours"] = usage.gpu_hours
    saves = [f"step {status.latest_checkpoint.step}"] if status.latest_checkpoint else []
    if _save_problem(status) and not status.finished:
        saves.append("save failed")
    if saves:
        show["checkpoint"] = ", ".join(saves)
    if counts:
        show["workers"] = f"{counts.running}/{counts.desired}"
    return Display.model_validate(show)


Row = tuple[str, str, str, str]
"""Type, status, reason and message of a condition."""


def _conditions(world: World, status: FineTuneJobStatus, situation: Situation) -> list[Condition]:
    rows = [
        _accepted(situation),
        _workers_ready(world, status),
        _progressing(status, situation),
        _checkpoint_available(status),
        _suspended(world, status),
        *_outcome(status),
    ]
    old = {condition.type: condition for condition in world.job.status.conditions}
    return [_condition(world, row, old.get(row[0])) for row in rows]


def _condition(world: World, row: Row, before: Condition | None) -> Condition:
    """Return the condition. Its time is that of the last change of its status."""
    kind, state, reason, message = row
    new = {"reason": reason, "message": message, "observed_generation": world.job.generation}
    if before and before.status == state:
        return before.replace(**new)
    changed = {"type": kind, "status": state, "last_transition_time": world.now}
    return Condition.model_validate(changed | new)


def _accepted(situation: Situation) -> Row:
    if situation.accepted:
        return "Accepted", "True", reasons.ACCEPTED, ""
    return "Accepted", "False", situation.reason, situation.message


def _workers_ready(world: World, status: FineTuneJobStatus) -> Row:
    counts = status.workers or WorkerCounts()
    gang = world.gang(status.attempt) if status.attempt else []
    known = [*gang_text.how_ended(gang), *gang_text.on_silent_nodes(gang)]
    text = "; ".join([f"{counts.running} of {counts.desired} workers run", *known])
    if status.finished or status.phase == "Suspended":
        return "WorkersReady", "False", _why_at_rest(status), ""
    if counts.running == counts.desired:
        return "WorkersReady", "True", reasons.ALL_RUNNING, text
    return "WorkersReady", "False", status.reason or str(status.phase), text


def _why_at_rest(status: FineTuneJobStatus) -> str:
    return reasons.FINISHED if status.finished else reasons.SUSPENDED


def _progressing(status: FineTuneJobStatus, situation: Situation) -> Row:
    if status.finished or status.phase == "Suspended":
        return "Progressing", "False", _why_at_rest(status), ""
    if situation.reason == reasons.REPORT_UNREACHABLE:
        port = names.REPORT_PORT
        text = f"no report of worker 0 arrives; open port {port} of the pods to the operator"
        return "Progressing", "Unknown", reasons.REPORT_UNREACHABLE, text
    if status.phase == "Running" and situation.reason == reasons.NODE_NOT_READY:
        text = "a node does not answer; if its pods run on, so does training"
        return "Progressing", "Unknown", reasons.NODE_NOT_READY, text
    if not situation.accepted:
        return "Progressing", "False", situation.reason, situation.message
    skipped = status.progress.skipped_steps if status.progress else 0
    text = f"{skipped} steps were not applied: their gradients were not finite" if skipped else ""
    return "Progressing", "True", situation.stage or situation.phase, text


def _checkpoint_available(status: FineTuneJobStatus) -> Row:
    newest = status.latest_checkpoint
    problem = _save_problem(status)
    if newest is None:
        reason = reasons.SAVE_FAILED if problem else reasons.NO_CHECKPOINT
        return "CheckpointAvailable", "False", reason, problem or "no checkpoint was saved yet"
    text = f"step {newest.step} at {newest.location}"
    if problem and not status.finished:
        return "CheckpointAvailable", "True", reasons.SAVE_FAILED, f"{text}; {problem}"
    return "CheckpointAvailable", "True", reasons.VERIFIED, text


def _suspended(world: World, status: FineTuneJobStatus) -> Row:
    """Return a row that is True only when no pod is left, which is when workers may be edited."""
    if status.phase == "Suspended":
        return "Suspended", "True", reasons.SUSPENDED, "no pod of the job exists"
    if world.job.spec.suspend and not status.finished:
        return "Suspended", "False", "Suspending", status.message or ""
    return "Suspended", "False", reasons.NOT_SUSPENDED, ""


def _outcome(status: FineTuneJobStatus) -> list[Row]:
    if not status.finished:
        return []
    succeeded = status.phase == "Succeeded"
    reason, message = status.reason or reasons.COMPLETED, status.message or ""
    return [
        ("Succeeded", "True" if succeeded else "False", reason, message),
        ("Failed", "False" if succeeded else "True", reason, message),
    ]
