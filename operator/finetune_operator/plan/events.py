"""The events that a person would want to see, derived from two consecutive statuses."""

from dataclasses import dataclass, replace

from finetune_api import reasons
from finetune_api.progress import DataSummary
from finetune_api.run import PrepareResult
from finetune_api.status import FineTuneJobStatus

MAX_PASSES = 4
"""Passes over a source up to which repeated rows are about as useful as new ones.

Source: Muennighoff et al., Scaling Data-Constrained Language Models (2023).
"""

_DOUBTS = (reasons.NODE_NOT_READY, reasons.REPORT_UNREACHABLE)


@dataclass(frozen=True)
class Event:
    """A Kubernetes event of a job, one line of `kubectl describe`."""

    kind: str  # Normal | Warning
    reason: str
    message: str


def between(
    old: FineTuneJobStatus, new: FineTuneJobStatus, prepared: PrepareResult | None = None
) -> list[Event]:
    """Return the events of what changed from the old status to the new one.

    `prepared` is the result of the prepare pod with which the first attempt was committed.
    """
    found = [
        *_acceptance(old, new),
        *_preparation(old, new, prepared),
        *_attempts(old, new),
        *_checkpoints(old, new),
        *_unused_experts(old, new),
        *_waiting(old, new),
        *_doubts(old, new),
        *_suspension(old, new),
        *_end(old, new),
    ]
    return [replace(event, message=_one_line(event.message)) for event in found]


def _one_line(text: str) -> str:
    """Return a text on one line: the first and the last line of the output of a container.

    `kubectl get events` prints line breaks as they are. The status has the whole text.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[0]} … {lines[-1]}" if len(lines) > 1 else text.strip()


def _acceptance(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    before = {(c.type, c.status, c.reason) for c in old.conditions}
    return [
        Event("Warning", c.reason, c.message)
        for c in new.conditions
        if c.type == "Accepted"
        and c.status == "False"
        and (c.type, c.status, c.reason) not in before
    ]


def _preparation(
    old: FineTuneJobStatus, new: FineTuneJobStatus, prepared: PrepareResult | None
) -> list[Event]:
    if _prepare_pods_ended(new) > _prepare_pods_ended(old) and new.phase == "Preparing":
        return [Event("Warning", reasons.PREPARE_FAILED, new.message or "")]
    if old.attempt is None and new.attempt is not None and new.data:
        data = new.data
        text = (
            f"{data.examples} examples in {data.rows} rows, {data.trained_tokens} of {data.tokens} "
            f"tokens are trained on{_left_out(data)}"
        )
        named = "; ".join(map(str, prepared.left_out or [])) if prepared else ""
        text += f"; the first: {named}" if named else ""
        doubts = (prepared.warnings if prepared else None) or []
        return [
            Event("Normal", reasons.PREPARED, text[:1024]),
            *(Event("Warning", reasons.DATA_DOUBTFUL, doubt) for doubt in doubts),
            *_repeated(data),
        ]
    if old.phase is None and new.phase == "Preparing":
        return [Event("Normal", "Preparing", "starting the prepare pod")]
    return []


def _left_out(data: DataSummary) -> str:
    """Return a clause on the examples that are not trained on, if there are any."""
    counts = {
        "too long": data.dropped_overlong,
        "without trained tokens": data.dropped_empty + data.dropped_untrained,
        "invalid": data.invalid,
    }
    found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"; left out: {found}" if found else ""


def _prepare_pods_ended(status: FineTuneJobStatus) -> int:
    return status.prepare_failures + status.prepare_interruptions


def _repeated(data: DataSummary) -> list[Event]:
    """Warn of sources whose rows are repeated so often that they are memorized."""
    often = [f"{s.source} {s.passes:g} times" for s in data.sources if (s.passes or 0) > MAX_PASSES]
    if not often:
        return []
    text = (
        f"rows are seen more than {MAX_PASSES} times: {', '.join(often)}; lower the source's "
        "weight or training.epochs, or add data"
    )
    return [Event("Warning", reasons.SOURCE_REPEATS, text[:1024])]


def _attempts(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    events = []
    known = {a.number: a for a in old.attempts}
    for attempt in new.attempts:
        before = known.get(attempt.number)
        if before is None:
            text = f"attempt {attempt.number} starts"
            if new.latest_checkpoint:
                text += f" from the checkpoint of step {new.latest_checkpoint.step}"
            events.append(Event("Normal", reasons.ATTEMPT_STARTED, text))
        ended = attempt.outcome and (before is None or before.outcome is None)
        if ended and attempt.outcome != "Succeeded":
            failed = attempt.outcome in ("Failed", "Released") or attempt.exit_code is not None
            kind = "Warning" if failed and attempt.outcome != "Preempted" else "Normal"
            text = f"attempt {attempt.number}: {attempt.message}"
            events.append(Event(kind, attempt.reason or reasons.ATTEMPT_ENDED, text))
    if old.phase != "Running" and new.phase == "Running":
        events.append(Event("Normal", reasons.WORKERS_RUNNING, "all workers run"))
    return events


def _checkpoints(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    return [*_failed_saves(old, new), *_verified_checkpoints(old, new)]


def _failed_saves(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    """Warn of the first of several saves in a row that fail."""
    before, problem = (s.progress and s.progress.checkpoint_problem for s in (old, new))
    return [Event("Warning", reasons.SAVE_FAILED, problem)] if problem and not before else []


def _unused_experts(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    """Warn of the first experts that no token reaches."""
    before, unused = (s.progress and s.progress.unused_experts for s in (old, new))
    if not unused or before:
        return []
    text = f"no token reached {unused} experts in 100 steps; the log of worker 0 names some of them"
    return [Event("Warning", reasons.EXPERTS_UNUSED, text)]


def _verified_checkpoints(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    newest = new.latest_checkpoint
    if newest is None or (old.latest_checkpoint and old.latest_checkpoint.step >= newest.step):
        return []
    text = f"step {newest.step}, {newest.size_bytes} bytes, verified: {newest.location}"
    return [Event("Normal", reasons.CHECKPOINT_VERIFIED, text)]


def _waiting(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    """Warn, once, that a pod cannot start."""
    starting = new.phase in ("Preparing", "Queued", "Starting")
    stuck = starting and new.reason not in (None, reasons.BACK_OFF)
    refused = any(c.type == "Accepted" and c.status == "False" for c in new.conditions)
    if not stuck or refused or new.reason == old.reason:
        return []
    if _prepare_pods_ended(new) > _prepare_pods_ended(old):
        return []
    kind = "Normal" if new.reason == reasons.PULLING else "Warning"
    return [Event(kind, new.reason or "", new.message or "")]


def _doubts(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    """Warn, once, that it is not known whether a gang goes on."""
    if new.reason == old.reason or new.reason not in _DOUBTS:
        return []
    return [Event("Warning", new.reason, new.message or "")]


def _suspension(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    if old.phase == new.phase:
        return []
    if new.phase in ("Suspending", "Suspended"):
        return [Event("Normal", str(new.phase), new.message or "")]
    if old.phase in ("Suspending", "Suspended") and not new.finished:
        return [Event("Normal", reasons.RESUMED, new.message or "")]
    return []


def _end(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    if old.finished or not new.finished:
        return []
    kind = "Normal" if new.phase == "Succeeded" else "Warning"
    return [Event(kind, str(new.phase), new.message or "")]
