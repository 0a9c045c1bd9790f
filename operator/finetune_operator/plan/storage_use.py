"""The policy that no two unfinished jobs of a namespace use one storage folder.

A folder in another one counts as well. The second job is not prepared: it waits until the first one
has ended. The first is one that has begun an attempt, else the older one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api import reasons
from finetune_api.base import Object
from finetune_api.status import FINISHED
from finetune_api.uri import ClaimPath, is_inside
from finetune_operator.plan.observe import Job, Refusal


@dataclass(frozen=True, slots=True)
class StorageUse:
    """The use of a folder by a job that has not ended: prepared, running, suspended or waiting."""

    uid: str
    namespace: str
    name: str
    claim: str
    path: str
    created: str  # its creationTimestamp
    begun: bool  # has an attempt

    @classmethod
    def of(cls, item: Object) -> "StorageUse | None":
        """Read a job. None if it has ended, or if a client with more rights made it invalid."""
        metadata, status = item["metadata"], item.get("status", {})
        try:
            storage = ClaimPath.parse(item["spec"]["checkpoints"]["storage"])
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        if status.get("phase") in FINISHED:
            return None
        return cls(
            uid=metadata["uid"],
            namespace=metadata["namespace"],
            name=metadata["name"],
            claim=storage.claim,
            path=storage.path,
            created=metadata.get("creationTimestamp", ""),
            begun="attempt" in status,
        )

    @property
    def order(self) -> tuple[bool, str, str]:
        """The order in which jobs get a folder. Two of the same second are ordered by their uid."""
        return not self.begun, self.created, self.uid

    def overlaps(self, other: "StorageUse") -> bool:
        """Return whether one folder is the other, or is inside it."""
        nested = is_inside(self.path, other.path) or is_inside(other.path, self.path)
        return self.claim == other.claim and nested


def refusal(job: Job, mine: StorageUse, others: Iterable[StorageUse]) -> Refusal | None:
    """Return why a job that has no attempt must wait, or None if its storage is its own."""
    ahead = [use for use in others if use.order < mine.order and use.overlaps(mine)]
    if not ahead:
        return None
    first = min(ahead, key=lambda use: use.order)
    uri = job.spec.checkpoints.storage
    shared = f"{uri} is also that of job {first.name}"
    if first.path != mine.path:
        shared = f"{uri} overlaps pvc://{first.claim}/{first.path} of job {first.name}"
    text = (
        f"checkpoints.storage {shared}, which has not ended; this job waits until that one has "
        "ended or is deleted; or choose another folder"
    )
    return Refusal(reasons.STORAGE_IN_USE, text)
