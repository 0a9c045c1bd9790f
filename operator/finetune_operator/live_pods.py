"""Live reads of the pods of a job, before the operator acts and where no watch reports them.

Watches and lists select pods by a label, which any client can remove. A worker without it still
holds its devices and may write to the storage, so it is found by its name.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api import names
from finetune_api.base import Object
from finetune_client.errors import ApiError
from finetune_operator import informer
from finetune_operator.execute import Requests, requested
from finetune_operator.informer import Pods
from finetune_operator.plan.decision import RECHECK
from finetune_operator.plan.observe import Job, Pod
from finetune_operator.plan.planner import only_prepares
from finetune_operator.queue import Key, RetryError

_log = logging.getLogger("finetune.live_pods")
_PARALLEL = 10  # reads by name at a time
WATCH_LAG = 3.0  # s for which a watch may be behind a read


@dataclass
class LivePods:
    """Reads pods from the API server into the cache."""

    api: Requests
    pods: Pods
    monotonic: Callable[[], float] = time.monotonic
    # By uid of a pod: when a read first lacked it although the watch has not reported its end.
    _missed: dict[str, float] = field(default_factory=dict)
    # The uid and the attempt of each job when pods were last created for it.
    _created: dict[Key, tuple[str, int | None]] = field(default_factory=dict)

    def creates(self, key: Key, job: Job) -> None:
        """Record that pods are created for the current attempt, or for the preparation."""
        self._created[key] = job.uid, job.status.attempt

    def forget(self, key: Key) -> None:
        """Forget a job that is gone."""
        self._created.pop(key, None)

    async def read(self, key: Key, job: Job) -> None:
        """Update the pods of a job.

        They are listed only if they matter, because the server looks through all pods of the
        namespace for it.
        """
        if only_prepares(job):
            await self._read_prepare_pod(key, job)
            return
        selector = f"{names.LABEL_JOB_UID}={job.uid}"
        with requested("list the pods of the job"):
            found, _ = await self.api.list(informer.path(job.namespace), labelSelector=selector)
        expected = self._workers(key, job)
        if job.spec.suspend:  # it rests only when no pod is left
            expected.append(names.prepare_pod_name(job.name))
        missing = self.pods.unproven(job, expected, found)
        found = found + await self._read_by_name(job, missing)
        self.pods.replace(found, job.namespace, job.uid, notify=False)

    async def _read_prepare_pod(self, key: Key, job: Job) -> None:
        """Read the prepare pod if it was created and the cache lacks it."""
        known = any(pod.role == "prepare" and not pod.gone for pod in self.pods.made_by(job))
        if self._was_created(key, job) and not known:
            await self._read_by_name(job, [names.prepare_pod_name(job.name)])

    def _was_created(self, key: Key, job: Job) -> bool:
        return self._created.get(key) == (job.uid, job.status.attempt)

    def _workers(self, key: Key, job: Job) -> list[str]:
        """Return the names of the workers of the newest attempt, if they may have been created."""
        if not job.status.attempts:
            return []
        attempt = job.status.attempts[-1]
        ends = attempt.stop_reason or attempt.outcome
        if not (attempt.created or ends or self._was_created(key, job)):
            return []
        indexes = range(attempt.workers)
        return [names.worker_pod_name(job.name, attempt.number, index) for index in indexes]

    async def _read_by_name(self, job: Job, pods: list[str]) -> list[Object]:
        """Return those of the pods that exist and belong to the job, and store them."""
        slots = asyncio.Semaphore(_PARALLEL)

        async def read(name: str) -> Object | None:
            async with slots:
                return await self._get(job, name)

        with requested("read pods of the job"):
            items = await asyncio.gather(*(read(name) for name in pods))
        for name, item in zip(pods, items, strict=True):
            if item is None:
                self._await_end(job, name)
                self.pods.absent(job, name)
            else:
                self.pods.take(item, notify=False)
        return [item for item in items if item]

    def _await_end(self, job: Job, name: str) -> None:
        """Raise RetryError while the watch may still report how a pod that is gone has ended.

        Otherwise its device time would be estimated, and its end judged, although the event with
        both is on its way.
        """
        now = self.monotonic()
        for pod in self.pods.made_by(job):
            if pod.name != name or pod.gone or pod.finished or not pod.labelled:
                continue
            if now - self._missed.setdefault(pod.uid, now) < WATCH_LAG:
                raise RetryError
            del self._missed[pod.uid]

    async def _get(self, job: Job, name: str) -> Object | None:
        try:
            item = await self.api.get(f"{informer.path(job.namespace)}/{name}")
        except ApiError as error:
            if error.code != 404:
                raise
            return None
        return item if Pod.of(item).belongs_to(job) else None

    async def read_unlabelled(self, job: Job) -> None:
        """Read the pods whose changes no watch reports, because their label was removed."""
        pods = [pod.name for pod in self.pods.unlabelled(job)]
        if pods and not job.status.finished:
            text = f"without the label {names.LABEL_JOB_UID}, read by name"
            _log.warning("%s/%s: %s: %s", job.namespace, job.name, text, ", ".join(pods))
            await self._read_by_name(job, pods)

    def read_again_after(self, job: Job) -> float | None:
        """Return the seconds until such pods are read again, or None if there are none."""
        return RECHECK if self.pods.unlabelled(job) and not job.status.finished else None
