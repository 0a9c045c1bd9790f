"""What people see of a job: a live panel, plain lines, the result (pure)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.base import Object
from finetune_api.status import FineTuneJobStatus
from finetune_api.text import duration

_COLOURS = {"Succeeded": "green", "Failed": "red", "Restarting": "yellow", "Running": "cyan"}
_NO_TIME = "1970-01-01T00:00:00Z"
_EVENTS = 5


@dataclass(frozen=True)
class Snapshot:
    """One look at a job."""

    name: str
    namespace: str
    created: datetime
    now: datetime
    status: FineTuneJobStatus
    phase: str = ""  # as the operator says it, also a word that this version does not know
    stage: str = ""
    events: tuple[Object, ...] = ()  # oldest first
    note: str = ""  # trouble of this command itself

    @classmethod
    def of(cls, job: Object, events: list[Object], now: datetime, note: str = "") -> "Snapshot":
        """From API objects."""
        metadata, status = job["metadata"], job.get("status") or {}
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            created=datetime.fromisoformat(metadata["creationTimestamp"]),
            now=now,
            status=readable(status),
            phase=str(status.get("phase") or ""),
            stage=str(status.get("stage") or ""),
            events=tuple(sorted(events, key=moment)),
            note=note,
        )


def readable(status: Object) -> FineTuneJobStatus:
    """What this version understands: a newer operator may add fields, and values to ours."""
    try:
        return FineTuneJobStatus.model_validate(status)
    except ValidationError as error:
        unread = {found["loc"][0] for found in error.errors()}
        return FineTuneJobStatus.model_validate(
            {name: value for name, value in status.items() if name not in unread}
        )


def moment(event: Object) -> datetime:
    """When an event happened last. Writers fill different fields, and may leave the others null."""
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    made = event["metadata"].get("creationTimestamp")
    found = next((time for time in (*times, made) if time), _NO_TIME)
    return datetime.fromisoformat(found).astimezone(UTC)


def _state(shot: Snapshot) -> str:
    if not shot.phase:
        waited = (shot.now - shot.created).total_seconds()
        hint = "; is finetune-operator running?" if waited > 30 else ""
        return f"waiting for the operator{hint}"
    text = f"{shot.phase} / {shot.stage}" if shot.stage else shot.phase
    return f"{text} ({shot.status.reason})" if shot.status.reason else text


def _numbers(status: FineTuneJobStatus) -> list[tuple[str, str]]:
    """Label and value of what is known."""
    rows: list[tuple[str, str]] = []
    progress, evaluation, usage = status.progress, status.evaluation, status.usage
    if progress:
        loss = "" if progress.train_loss is None else f"  loss {progress.train_loss:.4f}"
        rate = "" if progress.learning_rate is None else f"  lr {progress.learning_rate:.2e}"
        rows.append(("step", f"{progress.step} of {progress.total_steps}{loss}{rate}"))
        if progress.tokens_per_second is not None:
            eta = progress.eta_seconds
            left = f"  about {duration(eta)} left" if eta and not status.finished else ""
            mfu = "" if progress.mfu is None else f"  MFU {100 * progress.mfu:.0f} %"
            rows.append(("speed", f"{progress.tokens_per_second:,.0f} tokens/s{mfu}{left}"))
    if evaluation and evaluation.baseline is not None:
        last = "" if evaluation.last is None else f", {evaluation.last:.4f} at {_at(evaluation)}"
        rows.append(("validation", f"{evaluation.baseline:.4f} before training{last}"))
    if usage:
        rows.append(("devices", usage_text(status)))
    if status.workers and not status.finished:
        restarts = f"  attempt {status.attempt}" if status.attempt else ""
        restarts += f"  restarts {status.restarts}" if status.restarts else ""
        counts = status.workers
        rows.append(("workers", f"{counts.running} of {counts.desired} running{restarts}"))
    if status.latest_checkpoint:
        size = status.latest_checkpoint.size_bytes / 1e9
        text = f"step {status.latest_checkpoint.step}, {size:.2f} GB, verified"
        rows.append(("checkpoint", f"{text}  ({len(status.checkpoints)} kept)"))
    return rows


def _at(evaluation: Any) -> str:
    return f"step {evaluation.last_step}" if evaluation.last_step is not None else "the last step"


def usage_text(status: FineTuneJobStatus) -> str:
    """Device hours and their parts."""
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


def panel(shot: Snapshot) -> RenderableType:
    """The live view."""
    status = shot.status
    colour = _COLOURS.get(shot.phase, "white")
    title = Text.assemble(
        (f"{shot.namespace}/{shot.name}  ", "bold"),
        (_state(shot), f"bold {colour}"),
        (f"  {duration((shot.now - shot.created).total_seconds())}", "dim"),
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
        for event in shot.events[-_EVENTS:]
    ]
    if shot.note:
        parts.append(Text(shot.note, style="yellow"))
    return Group(*parts)


def event_line(event: Object) -> str:
    """Time, reason, message."""
    return f"{moment(event):%H:%M:%S} {event.get('reason') or ''}: {event.get('message') or ''}"


def _warns(event: Object) -> bool:
    return event.get("type") == "Warning"


def plain(old: Snapshot | None, new: Snapshot) -> list[str]:
    """Lines for a log file: what changed since the last look."""
    known = {(e["metadata"]["uid"], e.get("count")) for e in old.events} if old else set()
    lines = [
        event_line(event)
        for event in new.events
        if (event["metadata"]["uid"], event.get("count")) not in known
    ]
    stamp = f"{new.now:%H:%M:%S}"
    was, now = (_key(old) if old else None), _key(new)
    if was != now:
        message = f": {new.status.message}" if new.status.message else ""
        lines.append(f"{stamp} {_state(new)}{message}")
    if new.note and (old is None or old.note != new.note):
        lines.append(f"{stamp} {new.note}")
    return lines


def _key(shot: Snapshot) -> tuple[object, ...]:
    progress = shot.status.progress
    step = progress.step if progress else None
    return (_state(shot), step, shot.status.attempt)


def result(shot: Snapshot) -> list[str]:
    """What a finished job has to show."""
    status = shot.status
    took = (status.completion_time or shot.now) - shot.created
    head = f"{shot.namespace}/{shot.name} {status.phase} after {duration(took.total_seconds())}"
    lines = [head if status.phase == "Succeeded" else f"{head}: {status.reason}"]
    if status.message:
        lines.append(f"  {status.message}")
    lines += [f"  {label:<11} {value}" for label, value in _numbers(status)]
    if status.restarts:
        lines.append(f"  {'restarts':<11} {status.restarts}")
    if status.output:
        size = status.output.size_bytes / 1e6
        lines.append(f"  {'model':<11} {status.output.location} ({size:.0f} MB, verified)")
    return lines
