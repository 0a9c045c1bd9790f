"""Newest known version of every FineTuneJob."""

from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api.base import API_VERSION, Object
from finetune_api.names import PLURAL
from finetune_operator.plan.observe import Job
from finetune_operator.queue import Key
from finetune_operator.selector import Selector


def path(key: Key) -> str:
    """Of one job."""
    namespace, name = key
    return f"{collection(namespace)}/{name}"


def collection(namespace: str | None) -> str:
    """Of the jobs of one namespace, or of all."""
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API_VERSION}{where}/{PLURAL}"


@dataclass
class _Entry:
    """One version: as it came until somebody looks at it, then as it was read."""

    uid: str
    version: int  # ordered over all objects of the kind, also over those that had the same name
    item: Object | None
    job: Job | None = None
    before: Job | None = None  # the version before it, of the same object


@dataclass
class Jobs:
    """Fed by the watch and by the answers to our own writes, which may arrive in any order."""

    notify: Callable[[Key], None]
    removed: Callable[[str], None]  # with the uid of a job that is gone
    scope: Selector = field(default_factory=Selector)  # jobs outside it belong to another operator
    _entries: dict[Key, _Entry] = field(default_factory=dict)
    _uids: set[str] = field(default_factory=set)

    def get(self, key: Key) -> Job | None:
        """The job, None when it does not exist; ValueError when it cannot be read."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.job is None:
            assert entry.item is not None
            entry.job = Job.of(entry.item, entry.before)
            entry.item, entry.before = None, None
        return entry.job

    def uid(self, key: Key) -> str | None:
        """Of the object that has this name now."""
        entry = self._entries.get(key)
        return entry.uid if entry else None

    def read(self) -> list[tuple[Key, Job]]:
        """All jobs that were looked at since they last changed."""
        return [(key, entry.job) for key, entry in self._entries.items() if entry.job]

    def seen(self) -> list[Job]:
        """Every job as it was read last: what has changed since, and waits for its look, as it was.

        A job that were left out for that moment would seem to be gone, and to come back.
        """
        found = (entry.job or entry.before for entry in self._entries.values())
        return [job for job in found if job]

    def knows(self, uid: str) -> bool:
        """Whether a job of that uid is here."""
        return uid in self._uids

    def take(self, item: Object, *, tell: bool = True) -> bool:
        """A version; one older than is known changes nothing. False: it is not our job.

        `tell` is False from within a look, which goes on from that very version.
        """
        metadata = item["metadata"]
        metadata.pop("managedFields", None)  # two thirds of an object, and nobody reads them
        key = (metadata["namespace"], metadata["name"])
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        known = self._entries.get(key)
        if known and version <= known.version:
            return True
        if not self.scope.matches(metadata.get("labels", {})):
            self.forget(key)
            return False
        before = None
        if known and known.uid == uid:
            before = known.job or known.before
        elif known:
            self._gone(known)
        self._entries[key] = _Entry(uid, version, item, before=before)
        self._uids.add(uid)
        if tell:
            self.notify(key)
        return True

    def remove(self, key: Key, uid: str) -> None:
        """The object of that uid is gone."""
        if self.uid(key) == uid:
            self.forget(key)

    def forget(self, key: Key) -> None:
        """No job of that name is ours any more."""
        known = self._entries.pop(key, None)
        if known:
            self._gone(known)
            self.notify(key)

    def _gone(self, entry: _Entry) -> None:
        self._uids.discard(entry.uid)
        self.removed(entry.uid)
