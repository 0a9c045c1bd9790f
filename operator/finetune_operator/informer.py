"""Pods of all jobs, kept current by list and watch, as small frozen records.

Pods that are gone are kept as last seen: how a container ended, and what it cost, is often known
only from the last version of an object that no longer exists.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_api import names
from finetune_api.base import Object
from finetune_operator.health import Heart
from finetune_operator.kube import TRANSIENT, ApiError, Kube, backoff
from finetune_operator.plan.observe import Job, Pod
from finetune_operator.queue import Key

_log = logging.getLogger("finetune.informer")
_SELECTOR = names.LABEL_JOB_UID
LATE = 240.0  # s without event, bookmark or new attempt


@dataclass
class Pods:
    """Cache of pods by the job uid that their label says, which need not be true."""

    notify: Callable[[Key], None]
    notify_soon: Callable[[Key], None]  # of what may be looked at together with what follows
    ours: Callable[[str], bool] = lambda _: True  # whether a job of that uid is this operator's
    _pods: dict[str, dict[str, Pod]] = field(default_factory=lambda: defaultdict(dict))
    _versions: dict[str, int] = field(default_factory=dict)  # by the pod's uid
    _listed: set[str | None] = field(default_factory=set)  # namespaces; None: all

    def listed(self, namespace: str) -> bool:
        """Whether the pods of a namespace are known; else a job there would seem to have none."""
        return None in self._listed or namespace in self._listed

    def of(self, job_uid: str) -> tuple[Pod, ...]:
        """Pods with a job's label, also those that are gone."""
        return tuple(self._pods.get(job_uid, {}).values())

    def made_by(self, job: Job) -> tuple[Pod, ...]:
        """Those of them that the job made: the label alone anybody may write."""
        return tuple(pod for pod in self.of(job.uid) if pod.belongs_to(job))

    def take(self, item: Object, *, tell: bool = True) -> None:
        """A version of a pod; an older one than is known changes nothing.

        `tell` is False from within a look at its job.
        """
        metadata = item["metadata"]
        labels, uid = metadata.get("labels", {}), metadata["uid"]
        version = int(metadata["resourceVersion"])
        job_uid = labels.get(names.LABEL_JOB_UID)
        if job_uid is None or version < self._versions.get(uid, -1):
            return
        self._versions[uid] = version
        pod = Pod.of(item)
        if self._pods[job_uid].get(uid) == pod:
            return
        self._pods[job_uid][uid] = pod
        if tell:
            (self.notify_soon if _only_starts(pod) else self.notify)(pod.key)

    def vanish(
        self, job_uid: str, pod_uid: str, at: datetime | None = None, *, tell: bool = True
    ) -> None:
        """A pod's object is gone; `at`: when its deletion was seen."""
        pod = self._pods.get(job_uid, {}).get(pod_uid)
        if pod and not pod.gone:
            self._pods[job_uid][pod_uid] = pod.vanished(at)
            if tell:
                self.notify(pod.key)
        if not self.ours(job_uid):
            self.forget(job_uid)  # nobody will ask how it ended

    def replace(
        self,
        items: list[Object],
        namespace: str | None = None,
        job_uid: str | None = None,
        *,
        tell: bool = True,
    ) -> None:
        """A complete list, of one namespace or of all, of one job or of all.

        What is not in it is gone.
        """
        present = {item["metadata"]["uid"] for item in items}
        for uid in [job_uid] if job_uid else list(self._pods):
            for pod in self.of(uid):
                if pod.uid not in present and namespace in (None, pod.namespace):
                    self.vanish(uid, pod.uid, tell=tell)
        for item in items:
            self.take(item, tell=tell)
        if job_uid is None:
            self._listed.add(namespace)

    def forget(self, job_uid: str, *, before_attempt: int | None = None) -> None:
        """Drop what is gone and no longer needed; everything when the job itself is gone."""
        for pod in self.of(job_uid):
            old = before_attempt is None or (pod.role == "worker" and pod.attempt < before_attempt)
            if pod.gone and old:
                del self._pods[job_uid][pod.uid]
                self._versions.pop(pod.uid, None)
        if before_attempt is None and not self._pods.get(job_uid):
            self._pods.pop(job_uid, None)


def _only_starts(pod: Pod) -> bool:
    """A worker on its way to running; its gang gives such news by the dozen."""
    bad = pod.ended or pod.failure or pod.asked_to_stop
    return pod.role == "worker" and not bad


def path(namespace: str | None) -> str:
    """Collection of pods, of one namespace or of all."""
    return f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"


async def run(kube: Kube, pods: Pods, namespace: str | None, heart: Heart) -> None:
    """List, then watch, for ever; the list is read again only when its version is too old."""
    version: str | None = None
    pauses = backoff()
    while True:
        heart.beat()
        try:
            if version is None:
                version = await _list(kube, pods, namespace)
                heart.fill()
            async for event in kube.watch(path(namespace), version, labelSelector=_SELECTOR):
                version = event["object"]["metadata"]["resourceVersion"]
                heart.beat()
                pauses = backoff()
                _apply(pods, event)
        except ApiError as error:
            version = None
            if error.code != 410:
                _log.warning("pods cannot be watched: %s", error)
            if error.code in (403, 404):
                heart.refuse(f"refused ({error.code})")
        except TRANSIENT as error:
            _log.warning("the API server does not answer (%r); trying again", error)
        # Also after a plain end: a stream that ends at once, again and again, must not spin.
        await asyncio.sleep(next(pauses))


async def _list(kube: Kube, pods: Pods, namespace: str | None) -> str:
    items, version = await kube.list(path(namespace), labelSelector=_SELECTOR)
    pods.replace(items, namespace)
    return version


def _apply(pods: Pods, event: Object) -> None:
    item = event["object"]
    if event["type"] == "BOOKMARK":
        return
    pods.take(item)
    if event["type"] == "DELETED":
        labels = item["metadata"].get("labels", {})
        now = datetime.now(UTC)
        pods.vanish(labels[names.LABEL_JOB_UID], item["metadata"]["uid"], now)
