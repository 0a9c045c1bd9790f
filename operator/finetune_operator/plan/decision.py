"""The output of the planner: a new status, and requests that follow once it is written."""

from dataclasses import dataclass, field
from typing import Any

from finetune_api.run import PrepareResult
from finetune_api.status import FineTuneJobStatus

RECHECK = 10.0
"""Seconds until a job is planned again while it waits for something that may cause no event."""
SHORT_GRACE = 10
"""Grace period in seconds of a pod that has nothing to save."""


@dataclass(frozen=True)
class Delete:
    """A pod to delete. The uid is sent as a precondition."""

    name: str
    uid: str
    grace: int | None = None  # seconds; None: the pod's own grace period


@dataclass(frozen=True)
class Check:
    """What must exist or be admitted before the decision is carried out."""

    claims: tuple[str, ...] = ()
    pod: dict[str, Any] | None = None  # sent as a dry run
    # A worker, sent as a dry run long before it is created: a quota need not have room for it yet.
    later: dict[str, Any] | None = None
    gang: int = 0  # number of pods that the quotas must admit together
    names: tuple[str, ...] = ()  # of pods that must not exist yet, or belong to the job


@dataclass(frozen=True)
class Decision:
    """The new status of a job, and the requests that follow once it is written."""

    status: FineTuneJobStatus
    create: list[dict[str, Any]] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    delete_job: bool = False
    requeue_after: float | None = None  # seconds
    check: Check | None = None
    prepared: PrepareResult | None = None  # of the preparation that the status concludes
    commits: bool = False  # an attempt begins or ends with this status

    @property
    def acts(self) -> bool:
        """Whether the decision must be repeated from a live read before it is carried out."""
        return bool(self.create or self.delete or self.delete_job or self.check or self.commits)
