"""The cache of FineTuneJobs: the newest known version of each."""

from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api.base import API_VERSION, Object
from finetune_api.names import PLURAL
from finetune_operator.plan.observe import Job
from finetune_operator.queue import Key
from finetune_operator.selector import Selector


def path(key: Key) -> str:
    """Return the path of a job."""
    namespace, name = key
    return f"{collection(namespace)}/{name}"


def collection(namespace: str | None) -> str:
    """Return the path of the jobs of one namespace, or of all."""
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API_VERSION}{where}/{PLURAL}"


@dataclass
class _Entry:
    """One version of a job, parsed when it is first needed."""

    uid: str
    version: int  # comparable between all objects of the kind, even after a name was reused
    item: Object | None  # None once it is parsed
    job: Job | None = None
    before: Job | None = None  # the version before, of the same object


@dataclass
class Jobs:
    """The jobs by key. Versions come from the watch and from responses to writes, in any order."""

    notify: Callable[[Key], None]
    removed: Callable[[str], None]  # called with the uid of a job that is gone
    scope: Selector = field(default_factory=Selector)  # other jobs belong to other operators
    _entries: dict[Key, _Entry] = field(default_factory=dict)
    _uids: set[str] = field(default_factory=set)

    def get(self, key: Key) -> Job | None:
        """Return the job, or None if it does not exist; ValueError if it cannot be parsed."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.job is None:
            assert entry.item is not None
            entry.job = Job.of(entry.item, entry.before)
            entry.item, entry.before = None, None
        return entry.job

    def uid(self, key: Key) -> str | None:
        """Return the uid of the object that has this name now."""
        entry = self._entries.get(key)
        return entry.uid if entry else None

    def read(self) -> list[tuple[Key, Job]]:
        """Return the jobs that were parsed since they last changed."""
        return [(key, entry.job) for key, entry in self._entries.items() if entry.job]

    def seen(self) -> list[Job]:
        """Return every job as it was last parsed, even if it has changed since.

        If a changed job were left out until it is parsed, its metrics would vanish and come back.
        """
        found = (entry.job or entry.before for entry in self._entries.values())
        return [job for job in found if job]

    def knows(self, uid: str) -> bool:
        """Return whether there is a job of that uid."""
        return uid in self._uids

    def take(self, item: Object, *, notify: bool = True) -> bool:
        """Store a version of a job, unless a newer one is known.

        Returns False if the job belongs to another operator. `notify` is False while the job is
        being reconciled, which continues from this version.
        """
        metadata = item["metadata"]
        metadata.pop("managedFields", None)  # two thirds of an object, and never read
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
        if notify:
            self.notify(key)
        return True

    def remove(self, key: Key, uid: str) -> None:
        """Remove the job if the object of that uid is the one that is known."""
        if self.uid(key) == uid:
            self.forget(key)

    def forget(self, key: Key) -> None:
        """Remove the job of that name, because it is gone or belongs to another operator."""
        known = self._entries.pop(key, None)
        if known:
            self._gone(known)
            self.notify(key)

    def _gone(self, entry: _Entry) -> None:
        self._uids.discard(entry.uid)
        self.removed(entry.uid)
