"""The cache of pods, filled by list and watch, as small frozen records.

A pod that was deleted remains in the cache as it was last seen. How its container ended, and what
it cost, is often known only from the last version of the object.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from finetune_api import names
from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.backoff import backoff
from finetune_client.errors import TRANSIENT, ApiError
from finetune_operator.health import Heart
from finetune_operator.plan.observe import Job, Pod
from finetune_operator.queue import Key

_log = logging.getLogger("finetune.informer")
_SELECTOR = names.LABEL_JOB_UID
LATE = 240.0  # s without an event, a bookmark or another attempt after which a watch is late


@dataclass
class Pods:
    """The pods by the uid of the job that owns them.

    The watch selects pods by their label, which any client can remove: a pod that a watch reports
    as deleted, and one that a list lacks, may still exist. Before the operator acts on that, it
    reads such pods by their names.
    """

    notify: Callable[[Key], None]
    notify_soon: Callable[[Key], None]  # for changes that can be processed with those that follow
    ours: Callable[[str], bool] = lambda _: True  # whether this operator has a job of that uid
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _pods: dict[str, dict[str, Pod]] = field(default_factory=lambda: defaultdict(dict))
    _versions: dict[str, int] = field(default_factory=dict)  # by the pod's uid
    # By the uid of a job: its attempt, and the names of workers that do not exist.
    _absent: dict[str, tuple[int | None, set[str]]] = field(default_factory=dict)
    _listed: set[str | None] = field(default_factory=set)  # namespaces; None: all of them

    def listed(self, namespace: str) -> bool:
        """Return whether the pods of a namespace are known."""
        return None in self._listed or namespace in self._listed

    def of(self, job_uid: str) -> tuple[Pod, ...]:
        """Return the pods of a job, including those that are gone."""
        return tuple(self._pods.get(job_uid, {}).values())

    def made_by(self, job: Job) -> tuple[Pod, ...]:
        """Return the pods that belong to the job by owner reference, not by label alone."""
        return tuple(pod for pod in self.of(job.uid) if pod.belongs_to(job))

    def unlabelled(self, job: Job) -> list[Pod]:
        """Return the pods of a job that exist, and whose changes no watch reports."""
        return [pod for pod in self.made_by(job) if not (pod.labelled or pod.gone)]

    def unproven(self, job: Job, expected: Iterable[str], listed: list[Object]) -> list[str]:
        """Return the names of pods that a list of the job's pods lacks, and which may exist.

        `expected` are names that pods of the job have or had.
        """
        known = {pod.name for pod in self.made_by(job) if not pod.gone}
        present = {item["metadata"]["name"] for item in listed}
        return sorted((known | {*expected} - self._absent_of(job)) - present)

    def _absent_of(self, job: Job) -> set[str]:
        attempt, absent = self._absent.get(job.uid, (None, set[str]()))
        return absent if attempt == job.status.attempt else set()

    def take(self, item: Object, *, notify: bool = True) -> None:
        """Store a version of a pod, unless a newer one is known.

        `notify` is False while its job is being reconciled.
        """
        metadata = item["metadata"]
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        if version < self._versions.get(uid, -1):
            return
        pod = Pod.of(item)
        job_uid = _index(pod, item)
        if job_uid is None:
            return
        self._versions[uid] = version
        self._absent.get(job_uid, (None, set[str]()))[1].discard(pod.name)
        known = self._pods[job_uid].get(uid)
        if pod.finished and pod.released is None and known:
            # When it ended is known from having seen it alive, or not at all.
            pod = replace(pod, end_seen=known.end_seen if known.finished else self.clock())
        if known == pod:
            return
        self._pods[job_uid][uid] = pod
        if notify:
            (self.notify_soon if _only_starts(pod) else self.notify)(pod.key)

    def deleted(self, item: Object) -> None:
        """Process the event that a watch reports a pod as deleted."""
        self.take(item)
        if job_uid := _index(Pod.of(item), item):
            self.vanish(job_uid, item["metadata"]["uid"], self.clock())

    def absent(self, job: Job, name: str) -> None:
        """Record that the API server has no pod of the job by this name."""
        self._absent[job.uid] = job.status.attempt, self._absent_of(job) | {name}
        for pod in self.made_by(job):
            if pod.name == name:
                # Pods without the label are read again and again, so it has just been deleted.
                at = None if pod.labelled else self.clock()
                self.vanish(job.uid, pod.uid, at, notify=False)

    def vanish(
        self, job_uid: str, pod_uid: str, at: datetime | None = None, *, notify: bool = True
    ) -> None:
        """Mark a pod as gone; `at` is when its deletion was observed."""
        pod = self._pods.get(job_uid, {}).get(pod_uid)
        if pod and not pod.gone:
            self._pods[job_uid][pod_uid] = pod.vanished(at)
            if notify:
                self.notify(pod.key)
        if not self.ours(job_uid):
            self.forget(job_uid)  # Its job is gone too, so how it ended does not matter.

    def replace(
        self,
        items: list[Object],
        namespace: str | None = None,
        job_uid: str | None = None,
        *,
        notify: bool = True,
    ) -> None:
        """Store a complete list; pods that are not in it are gone.

        The list is of one namespace or of all, and of one job or of all. Pods without the label,
        which it cannot contain, are only missing in the list of their own job.
        """
        self.complete({uid_of(i) for i in items}, namespace, job_uid, notify=notify)
        for item in items:
            self.take(item, notify=notify)

    def complete(
        self,
        present: set[str],
        namespace: str | None,
        job_uid: str | None = None,
        *,
        notify: bool = True,
    ) -> None:
        """Mark the pods as gone that a complete list does not contain; `present` are its uids."""
        for uid in [job_uid] if job_uid else list(self._pods):
            for pod in self.of(uid):
                listable = pod.labelled or job_uid is not None
                if pod.uid not in present and listable and namespace in (None, pod.namespace):
                    self.vanish(uid, pod.uid, notify=notify)
        if job_uid is None:
            self._listed.add(namespace)

    def forget(
        self,
        job_uid: str,
        *,
        before_attempt: int | None = None,
        awaited: Container[tuple[int, int]] = (),
    ) -> None:
        """Drop pods that are gone: workers of earlier attempts, or all if no attempt is given.

        Workers that are `awaited`, by attempt and index, are kept if they have an exact end.
        """
        for pod in self.of(job_uid):
            old = before_attempt is None or (pod.role == "worker" and pod.attempt < before_attempt)
            if pod.gone and old and not (pod.released and (pod.attempt, pod.index) in awaited):
                del self._pods[job_uid][pod.uid]
                self._versions.pop(pod.uid, None)
        if before_attempt is None:
            self._absent.pop(job_uid, None)
            if not self._pods.get(job_uid):
                self._pods.pop(job_uid, None)


def _index(pod: Pod, item: Object) -> str | None:
    """Return the uid of the job that a pod belongs to, or which it claims in its label."""
    uid: str | None = item["metadata"].get("labels", {}).get(names.LABEL_JOB_UID)
    return pod.owner or uid


def uid_of(item: Object) -> str:
    """Return the uid of an API object."""
    uid: str = item["metadata"]["uid"]
    return uid


def _only_starts(pod: Pod) -> bool:
    """Return whether a worker is merely starting; the workers of a gang do so at about one time."""
    failing = pod.ended or pod.failure or pod.asked_to_stop or pod.silent_since
    return pod.role == "worker" and not failing


def path(namespace: str | None) -> str:
    """Return the path of the pods of one namespace, or of all."""
    return f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"


async def run(api: Api, pods: Pods, namespace: str | None, heart: Heart) -> None:
    """Keep the cache current until cancelled: list once, then watch.

    The pods are listed again only if the version is too old to continue the watch.
    """
    version: str | None = None
    delays = backoff()
    while True:
        heart.beat()
        try:
            if version is None:
                version = await _list(api, pods, namespace)
                heart.fill()
            async for event in api.watch(path(namespace), version, labelSelector=_SELECTOR):
                version = event["object"]["metadata"]["resourceVersion"]
                heart.beat()
                delays = backoff()
                _apply(pods, event)
        except ApiError as error:
            version = None
            if error.code != 410:
                _log.warning("pods cannot be watched: %s", error)
            if error.code in (403, 404):
                heart.refuse(f"refused ({error.code})")
        except TRANSIENT as error:
            _log.warning("the API server does not answer (%r); trying again", error)
        # Also after a normal end, so that streams which end at once do not cause a busy loop.
        await asyncio.sleep(next(delays))


async def _list(api: Api, pods: Pods, namespace: str | None) -> str:
    def take(item: Object) -> str:
        pods.take(item)
        return uid_of(item)

    # One by one: as Python objects, 10,000 pods would take hundreds of megabytes.
    present, version = await api.list_converted(path(namespace), take, labelSelector=_SELECTOR)
    pods.complete(set(present), namespace)
    return version


def _apply(pods: Pods, event: Object) -> None:
    item = event["object"]
    if event["type"] == "BOOKMARK":
        return
    if event["type"] == "DELETED":
        pods.deleted(item)
    else:
        pods.take(item)
