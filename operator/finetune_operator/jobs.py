"""The cache of FineTuneJobs: the newest known version of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from finetune_api.base import API_VERSION, Object
from finetune_api.names import PLURAL
from finetune_operator.plan.observe import Job
from finetune_operator.plan.storage_use import StorageUse
from finetune_operator.queue import Key
from finetune_operator.selector import Selector
from finetune_operator.storage_index import StorageIndex
from finetune_operator.versions import (
    Version,
    ended_at,
    is_large,
    key_of,
    number_of,
    without_templates,
)


def path(key: Key) -> str:
    """Return the path of a job."""
    namespace, name = key
    return f"{collection(namespace)}/{name}"


def collection(namespace: str | None) -> str:
    """Return the path of the jobs of one namespace, or of all."""
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API_VERSION}{where}/{PLURAL}"


Samples = tuple[Any, ...]
"""What the metrics show of a job (job_metrics.py)."""


@dataclass(slots=True)
class _Entry:
    """The newest known version of a job.

    A job that goes on is kept as it was parsed, unless it is large. Of one that has ended only the
    compressed version is kept, because nothing happens to it any more.
    """

    uid: str
    number: int
    version: Version | None  # None if `job` is all of it
    job: Job | None = None  # as parsed, of a large job without its templates
    before: Job | None = None  # the version before, of the same object
    complete: bool = False  # whether `before` has its templates
    samples: Samples | None = None  # of a job that has ended, as long as the metrics show it

    @property
    def ended(self) -> float | None:
        """The Unix time at which the job ended; None if it goes on."""
        return self.version.ended if self.version else None


@dataclass
class Jobs:
    """The jobs by key. Versions come from the watch and from responses to writes, in any order."""

    notify: Callable[[Key], None]
    removed: Callable[[str], None]  # called with the uid of a job that is gone
    scope: Selector = field(default_factory=Selector)  # other jobs belong to other operators
    notify_ended: Callable[[Key], None] | None = None  # for jobs that have ended; None: as others
    measure: Callable[[Job], Samples] = lambda _: ()
    storage: StorageIndex = field(default_factory=StorageIndex)
    _entries: dict[Key, _Entry] = field(default_factory=dict)
    _uids: set[str] = field(default_factory=set)
    _newest: tuple[Version, Job] | None = None  # what was parsed last and is not kept

    def get(self, key: Key) -> Job | None:
        """Return the job, or None if it does not exist; ValueError if it cannot be parsed."""
        entry = self._entries.get(key)
        if entry is None or entry.version is None:
            return entry.job if entry else None
        if self._newest and self._newest[0] is entry.version:
            return self._newest[1]
        job = entry.version.parse(entry.before if entry.complete else None)
        self._keep(entry, job)
        return job

    def _keep(self, entry: _Entry, job: Job) -> None:
        """Keep of a job that was parsed what is needed until its next version."""
        version, entry.before = entry.version, None
        assert version is not None
        if version.ended is not None:
            entry.samples = self.measure(job)
        elif version.large:
            entry.job = without_templates(job)
        else:
            entry.version, entry.job = None, job
            return
        self._newest = version, job

    def uid(self, key: Key) -> str | None:
        """Return the uid of the object that has this name now."""
        entry = self._entries.get(key)
        return entry.uid if entry else None

    def read(self) -> list[tuple[Key, Job]]:
        """Return the jobs that go on and were parsed since they last changed.

        Large ones have no templates.
        """
        return [(key, entry.job) for key, entry in self._entries.items() if entry.job]

    def seen(self) -> list[Job]:
        """Return every job that goes on as it was last parsed, even if it has changed since.

        If a changed job were left out until it is parsed, its metrics would vanish and come back.
        """
        found = (entry.job or entry.before for entry in self._entries.values())
        return [job for job in found if job]

    def ended(self, since: float) -> list[tuple[Key, Samples]]:
        """Return the samples of the jobs that ended after a moment, and drop those of the others.

        `since` is a Unix time.
        """
        found = []
        for key, entry in self._entries.items():
            if entry.samples is None:
                continue
            if entry.ended is not None and entry.ended > since:
                found.append((key, entry.samples))
            else:
                entry.samples = None
        return found

    def knows(self, uid: str) -> bool:
        """Return whether there is a job of that uid."""
        return uid in self._uids

    def take(self, item: Object, *, notify: bool = True) -> bool:
        """Store a version of a job, unless a newer one is known.

        Returns False if the job belongs to another operator. `notify` is False while the job is
        being reconciled, which continues from this version.
        """
        key, known = key_of(item), self._entries.get(key_of(item))
        if known and number_of(item) <= known.number:
            return True
        if not self.scope.matches(item["metadata"].get("labels", {})):
            self.forget(key)
            return False
        if notify or ended_at(item) is not None or is_large(item):
            self.store(Version.of(item), notify=notify)
        else:
            self._store_parsed(key, item)
        return True

    def _store_parsed(self, key: Key, item: Object) -> None:
        """Store a version that is needed at once."""
        entry = self._replace(key, item["metadata"]["uid"], number_of(item))
        self.storage.put(entry.uid, StorageUse.of(item))
        try:
            entry.job = Job.of(item, entry.before if entry.complete else None)
            entry.before = None
        except ValueError:
            entry.version = Version.of(item)  # Each `get` raises the error.

    def store(self, version: Version, *, notify: bool = True) -> None:
        """Store a version of a job in the scope, unless a newer one is known."""
        known = self._entries.get(version.key)
        if known and version.number <= known.number:
            return
        self._replace(version.key, version.uid, version.number).version = version
        self.storage.put(version.uid, version.use)
        if notify:
            ended = self.notify_ended if version.ended is not None else None
            (ended or self.notify)(version.key)

    def _replace(self, key: Key, uid: str, number: int) -> _Entry:
        """Replace what is known of a name by an entry for a newer version."""
        known, entry = self._entries.get(key), _Entry(uid, number, None)
        if known and known.uid == uid:
            entry.before = known.job or known.before
            entry.complete = known.version is None if known.job else known.complete
        elif known:
            self._gone(known)
        self._entries[key] = entry
        self._uids.add(uid)
        return entry

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
        self.storage.put(entry.uid, None)
        self.removed(entry.uid)
