"""What the planner may decide."""

from dataclasses import dataclass, field
from typing import Any

from finetune_api.status import FineTuneJobStatus


@dataclass(frozen=True)
class Delete:
    """A pod to delete; the uid is a precondition."""

    name: str
    uid: str
    grace: int | None = None  # s; None: the pod's own


@dataclass(frozen=True)
class Event:
    """Something a person would want to know, once."""

    kind: str  # Normal | Warning
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """The new status, and what to do once it is written."""

    status: FineTuneJobStatus
    create: list[dict[str, Any]] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    requeue_after: float | None = None  # s
    check: dict[str, Any] | None = None  # a pod to dry-run before the status is written

    @property
    def acts(self) -> bool:
        """Must be made again from a live read before it is carried out."""
        return bool(self.create or self.delete or self.check)
