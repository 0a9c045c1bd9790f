"""Renders a job as a live panel, as plain lines and as a result (pure functions)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.base import Object
from finetune_api.progress import Plan, Progress
from finetune_api.status import FineTuneJobStatus
from finetune_api.text import duration

_COLOURS = {"Succeeded": "green", "Failed": "red", "Restarting": "yellow", "Running": "cyan"}
_NO_TIME = "1970-01-01T00:00:00Z"
_EVENTS = 5


@dataclass(frozen=True)
class Snapshot:
    """A job and its events at one time."""

    name: str
    namespace: str
    created: datetime
    now: datetime
    status: FineTuneJobStatus
    phase: str = ""  # as the operator wrote it, even if this version does not know it
    stage: str = ""
    events: tuple[Object, ...] = ()  # oldest first
    note: str = ""  # a problem of this command, for example of its connection

    @classmethod
    def of(cls, job: Object, events: list[Object], now: datetime, note: str = "") -> "Snapshot":
        """Make a snapshot from objects of the API."""
        metadata, status = job["metadata"], job.get("status") or {}
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            created=datetime.fromisoformat(metadata["creationTimestamp"]),
            now=now,
            status=readable(status),
            phase=str(status.get("phase") or ""),
            stage=str(status.get("stage") or ""),
            events=tuple(sorted(events, key=event_time)),
            note=note,
        )


def readable(status: Object) -> FineTuneJobStatus:
    """Parse the fields that this version understands; a newer operator may write others."""
    try:
        return FineTuneJobStatus.model_validate(status)
    except ValidationError as error:
        unread = {found["loc"][0] for found in error.errors()}
        return FineTuneJobStatus.model_validate(
            {name: value for name, value in status.items() if name not in unread}
        )


def event_time(event: Object) -> datetime:
    """Return when an event last happened. Clients fill different fields; the others may be null."""
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    made = event["metadata"].get("creationTimestamp")
    found = next((time for time in (*times, made) if time), _NO_TIME)
    return datetime.fromisoformat(found).astimezone(UTC)


def _state(snapshot: Snapshot) -> str:
    if not snapshot.phase:
        waited = (snapshot.now - snapshot.created).total_seconds()
        hint = "; is finetune-operator running?" if waited > 30 else ""
        return f"waiting for the operator{hint}"
    text = f"{snapshot.phase} / {snapshot.stage}" if snapshot.stage else snapshot.phase
    return f"{text} ({snapshot.status.reason})" if snapshot.status.reason else text


def _numbers(status: FineTuneJobStatus) -> list[tuple[str, str]]:
    """Return labels and values of the figures that the status contains."""
    rows: list[tuple[str, str]] = []
    progress, evaluation, usage = status.progress, status.evaluation, status.usage
    if check := check_text(status):
        rows.append(("check", check))
    if status.plan:
        rows += _plan(status.plan, progress)
    if progress:
        loss = "" if progress.train_loss is None else f"  loss {progress.train_loss:.4f}"
        rate = "" if progress.learning_rate is None else f"  lr {progress.learning_rate:.2e}"
        rows.append(("step", f"{progress.step} of {progress.total_steps}{loss}{rate}"))
        if progress.tokens_per_second is not None:
            # As in the columns of kubectl: the progress can be that of an earlier attempt.
            eta = status.display and status.display.eta
            left = f"  about {eta} left" if eta else ""
            mfu = "" if progress.mfu is None else f"  MFU {100 * progress.mfu:.0f} %"
            rows.append(("speed", f"{progress.tokens_per_second:,.0f} tokens/s{mfu}{left}"))
    if evaluation and evaluation.baseline is not None:
        last = "" if evaluation.last is None else f", {evaluation.last:.4f} at {_at(evaluation)}"
        rows.append(("validation", f"{evaluation.baseline:.4f} before training{last}"))
    if usage:
        rows.append(("devices", usage_text(status)))
    if status.workers and not status.finished:
        attempt = f"  attempt {status.attempt}" if status.attempt else ""
        counts = status.workers
        rows.append(("workers", f"{counts.running} of {counts.desired} running{attempt}"))
    if status.restarts:
        cause = status.display and status.display.restarted
        last = f", the last one after {cause}" if cause else ""
        rows.append(("restarts", f"{status.restarts}{last}"))
    if status.latest_checkpoint:
        size = status.latest_checkpoint.size_bytes / 1e9
        text = f"step {status.latest_checkpoint.step}, {size:.2f} GB, verified"
        rows.append(("checkpoint", f"{text}  ({len(status.checkpoints)} kept)"))
    return rows


def _plan(plan: Plan, progress: Progress | None) -> list[tuple[str, str]]:
    """Return how training is distributed, the memory that it needs, and why."""
    text = f"ZeRO {plan.zero_stage}, {plan.micro_batch_size} x "
    text += f"{plan.gradient_accumulation_steps} rows per device and step"
    if plan.activation_checkpointing != "Never":
        text += ", activations recomputed"
    if plan.offload != "None":
        text += f", offload {plan.offload}"
    rows = [("plan", text)]
    if plan.device_bytes:
        used = progress and progress.device_memory_bytes
        name = (progress and progress.device_name) or "the device"
        measured = f", {used / 1e9:.1f} GB reserved on {name}" if used else ""
        device = f" of {plan.device_type}" if plan.device_type else ""
        size = plan.device_bytes.total / 1e9
        rows.append(("memory", f"{size:.1f} GB per device{device} computed{measured}"))
    return [*rows, *(("", reason) for reason in plan.reasons or [])]


def check_text(status: FineTuneJobStatus) -> str | None:
    """Return what preparation found when it compared the model with plain transformers."""
    found = {
        "Rows": "packed rows are computed exactly as separate documents",
        "Document": "exact one document at a time, not in packed rows, so slower",
    }
    forward_pass = status.plan and status.plan.forward_pass
    return found[forward_pass] if forward_pass else None


def _at(evaluation: Any) -> str:
    return f"step {evaluation.last_step}" if evaluation.last_step is not None else "the last step"


def usage_text(status: FineTuneJobStatus) -> str:
    """Return the device hours and their shares as text."""
    usage = status.usage
    if usage is None:
        return "no device time"
    total = max(1, usage.device_seconds)
    shares = (
        f"{100 * usage.productive_device_seconds / total:.0f}% productive, "
        f"{100 * usage.lost_device_seconds / total:.0f}% lost, "
        f"{100 * usage.overhead_device_seconds / total:.0f}% overhead"
    )
    mark = ", estimated" if usage.estimated else ""
    return f"{usage.device_seconds / 3600:.3f} device hours ({shares}{mark})"


def panel(snapshot: Snapshot) -> RenderableType:
    """Return the live view."""
    status = snapshot.status
    colour = _COLOURS.get(snapshot.phase, "white")
    title = Text.assemble(
        (f"{snapshot.namespace}/{snapshot.name}  ", "bold"),
        (_state(snapshot), f"bold {colour}"),
        (f"  {duration((snapshot.now - snapshot.created).total_seconds())}", "dim"),
    )
    parts: list[RenderableType] = [title]
    if status.progress:
        parts.append(
            ProgressBar(total=status.progress.total_steps, completed=status.progress.step, width=60)
        )
    if status.message:
        parts.append(Text(status.message))
    grid = Table.grid(padding=(0, 2))
    for label, value in _numbers(status):
        grid.add_row(Text(label, style="dim"), Text(value))
    parts.append(grid)
    parts += [
        Text(event_line(event), style="yellow" if _warns(event) else "dim")
        for event in snapshot.events[-_EVENTS:]
    ]
    if snapshot.note:
        parts.append(Text(snapshot.note, style="yellow"))
    return Group(*parts)


def event_line(event: Object) -> str:
    """Return an event as a line: time, reason and message."""
    return f"{event_time(event):%H:%M:%S} {event.get('reason') or ''}: {event.get('message') or ''}"


def _warns(event: Object) -> bool:
    return event.get("type") == "Warning"


def plain(old: Snapshot | None, new: Snapshot) -> list[str]:
    """Return lines about what changed since the last snapshot, as for a log file."""
    known = {(e["metadata"]["uid"], e.get("count")) for e in old.events} if old else set()
    lines = [
        event_line(event)
        for event in new.events
        if (event["metadata"]["uid"], event.get("count")) not in known
    ]
    stamp = f"{new.now:%H:%M:%S}"
    if old is None or _key(old) != _key(new):
        message = f": {new.status.message}" if new.status.message else ""
        lines.append(f"{stamp} {_state(new)}{message}")
    check = check_text(new.status)
    if check and (old is None or check_text(old.status) != check):
        lines.append(f"{stamp} check: {check}")
    if new.note and (old is None or old.note != new.note):
        lines.append(f"{stamp} {new.note}")
    return lines


def _key(snapshot: Snapshot) -> tuple[object, ...]:
    progress = snapshot.status.progress
    step = progress.step if progress else None
    return (_state(snapshot), step, snapshot.status.attempt)


def result(snapshot: Snapshot) -> list[str]:
    """Return the result of a finished job, as lines."""
    status = snapshot.status
    took = (status.completion_time or snapshot.now) - snapshot.created
    name = f"{snapshot.namespace}/{snapshot.name}"
    head = f"{name} {status.phase} after {duration(took.total_seconds())}"
    lines = [head if status.phase == "Succeeded" else f"{head}: {status.reason}"]
    if status.message:
        lines.append(f"  {status.message}")
    lines += [f"  {label:<11} {value}" for label, value in _numbers(status)]
    if status.output:
        size = status.output.size_bytes / 1e6
        lines.append(f"  {'model':<11} {status.output.location} ({size:.0f} MB, verified)")
    return lines
