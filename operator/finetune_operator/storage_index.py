"""The index of the storage folders of all unfinished jobs that this operator sees."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TypeVar

from finetune_operator.plan.storage_use import StorageUse

_Key = TypeVar("_Key")
_MOST_OWNERS = 256
"""Uids that a pod is given. Otherwise many jobs of one tenant would make the others' pods large."""


@dataclass
class StorageIndex:
    """Uses by uid, by claim and by path."""

    _uses: dict[str, StorageUse] = field(default_factory=dict)
    _by_claim: dict[tuple[str, str], dict[str, StorageUse]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _by_path: dict[str, dict[str, StorageUse]] = field(default_factory=lambda: defaultdict(dict))

    def put(self, uid: str, use: StorageUse | None) -> None:
        """Replace the use of a job; None removes it."""
        if old := self._uses.pop(uid, None):
            _drop(self._by_claim, (old.namespace, old.claim), uid)
            _drop(self._by_path, old.path, uid)
        if use:
            self._uses[uid] = use
            self._by_claim[use.namespace, use.claim][uid] = use
            self._by_path[use.path][uid] = use

    def get(self, uid: str) -> StorageUse | None:
        """Return the use of a job, or None if it has ended."""
        return self._uses.get(uid)

    def beside(self, use: StorageUse) -> tuple[StorageUse, ...]:
        """Return the other uses that overlap this one."""
        others = self._by_claim.get((use.namespace, use.claim), {}).values()
        found = [other for other in others if other.uid != use.uid and other.overlaps(use)]
        return tuple(sorted(found, key=lambda other: other.order))

    def owners(self, use: StorageUse) -> tuple[str, ...]:
        """Return the uids of other jobs with the same path on any claim, the namespace's first."""
        others = [o for o in self._by_path.get(use.path, {}).values() if o.uid != use.uid]
        others.sort(key=lambda other: (other.namespace != use.namespace, other.order))
        return tuple(other.uid for other in others[:_MOST_OWNERS])


def _drop(index: dict[_Key, dict[str, StorageUse]], key: _Key, uid: str) -> None:
    index[key].pop(uid, None)
    if not index[key]:
        del index[key]
