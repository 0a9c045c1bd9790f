"""What the planner may decide."""

from dataclasses import dataclass, field
from typing import Any

from finetune_api.status import FineTuneJobStatus

RECHECK = 10.0  # s between looks at what no event may tell: a refusal that was mended, a pod's end


@dataclass(frozen=True)
class Delete:
    """A pod to delete; the uid is a precondition."""

    name: str
    uid: str
    grace: int | None = None  # s; None: the pod's own


@dataclass(frozen=True)
class Check:
    """What must be there or be admitted before the decision is carried out."""

    claims: tuple[str, ...] = ()
    pod: dict[str, Any] | None = None  # sent as a dry run


@dataclass(frozen=True)
class Decision:
    """The new status, and what to do once it is written."""

    status: FineTuneJobStatus
    create: list[dict[str, Any]] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    delete_job: bool = False
    requeue_after: float | None = None  # s
    check: Check | None = None
    commits: bool = False  # an attempt begins or ends with this status

    @property
    def acts(self) -> bool:
        """Must be made again from a live read before it is carried out."""
        return bool(self.create or self.delete or self.delete_job or self.check or self.commits)
