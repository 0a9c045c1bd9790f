"""Reconciling one job: observe, plan, check, commit, act."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api import reasons
from finetune_api.base import Object
from finetune_api.status import FineTuneJobStatus
from finetune_client.errors import TRANSIENT, ApiError
from finetune_operator import execute, jobs
from finetune_operator.admission import Admission
from finetune_operator.events import Recorder
from finetune_operator.execute import Requests, requested
from finetune_operator.failures import Failures, Pauses, sentence
from finetune_operator.informer import Pods
from finetune_operator.jobs import Jobs
from finetune_operator.lease import LeaseLostError
from finetune_operator.live_pods import LivePods
from finetune_operator.plan import corrections, events, reserved, storage_use
from finetune_operator.plan.decision import Decision
from finetune_operator.plan.observe import Job, Refusal, World
from finetune_operator.plan.planner import only_prepares, plan
from finetune_operator.plan.quota import Demand
from finetune_operator.plan.slow_pods import slow_pods, with_notices
from finetune_operator.plan.storage_use import StorageUse
from finetune_operator.pod_events import PodEvents
from finetune_operator.queue import Key, RetryError
from finetune_operator.reports import Reports
from finetune_operator.settings import Settings
from finetune_operator.status import Throttle, Urgency, merge_patch, urgency

_log = logging.getLogger("finetune.reconcile")
_UNLISTED = 5.0  # s between attempts while the pods of the job's namespace are not known


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)  # Kubernetes times have whole seconds.


@dataclass
class Reconciler:
    """Brings the state of the cluster closer to what the jobs ask for, one job at a time."""

    api: Requests
    jobs: Jobs
    pods: Pods
    reports: Reports
    recorder: Recorder
    settings: Settings
    throttle: Throttle
    clock: Callable[[], datetime] = _now
    monotonic: Callable[[], float] = time.monotonic
    wrote: Callable[[Urgency, Job, FineTuneJobStatus], None] = lambda *_: None
    _stale: set[Key] = field(default_factory=set)  # jobs whose cached version is known to be old
    _failures: Failures = field(default_factory=Failures)
    _pauses: Pauses = field(default_factory=Pauses)
    _pod_events: PodEvents = field(init=False)

    def __post_init__(self) -> None:
        self._pod_events = PodEvents(self.api)
        self._live = LivePods(self.api, self.pods, self.monotonic)
        self._admission = Admission(self.api)

    async def reconcile(self, key: Key) -> float | None:
        """Bring one job forward and return the seconds until the next call.

        None means that the next call follows a change of the job, its pods or its report.

        1. Read the job and its pods from the caches, and plan.
        2. If the plan only changes the status, write it and stop.
        3. Otherwise read the job and its pods from the API server and plan again: the caches are
           good enough to see that something must be done, but not to do it.
        4. Check: ask the API server whether it would accept what the plan creates. If it refuses,
           plan again with the refusal.
        5. Commit: write the status, and queue events about what changed.
        6. Act: delete and create pods. This follows the commit, so that an operator that dies here
           knows from the status what it was doing.
        7. If an attempt began or ended, plan again from the status just written and continue with
           step 4. The write would have failed if anyone had changed the job since step 3.

        Raises RetryError if a request failed. If the retries fail as well, the status shows it.
        """
        try:
            delay, complete = await self._bring_forward(key)
        except ValidationError as error:
            _log.error("%s/%s cannot be read by this version: %s", *key, error)
            return None
        except (ApiError, *TRANSIENT) as error:
            _log.warning("%s/%s: %s", *key, sentence(error))
            if isinstance(error, ApiError) and error.code in (404, 409):
                self._stale.add(key)  # The plan was made from an old version or a deleted job.
            self._failures.record(key, error)
            await self._show_failure(key)
            raise RetryError from error
        if complete and self._failures.clear(key):
            return 0.0  # to remove the failure from the status
        return delay

    async def _bring_forward(self, key: Key) -> tuple[float | None, bool]:
        """Take the steps; return the delay, and whether nothing was put off."""
        job = await self._read_cached(key)
        if job is None:
            self._failures.clear(key)
            self._pauses.end(key)
            return None, True
        if not self.pods.listed(job.namespace):
            return _UNLISTED, False
        await self._live.read_unlabelled(job)
        world = self._observe(key, job)
        if slow := slow_pods(world):
            await self._pod_events.read(slow, world.now)
            world = self._observe(key, job)
        decision, pause = self._plan(key, world)
        if not decision.acts:
            _, delay = await self._write(key, world, decision)
            again = self._live.read_again_after(job)
            return _soonest(delay, decision.requeue_after, pause, again), not (delay or pause)

        live = await self._read_live(key)
        if live is None:
            return None, True
        fresh = self._observe(key, live)
        if fresh != world:
            world = fresh
            decision, pause = self._plan(key, world)

        while True:
            world, decision = await self._check(world, decision)
            written, delay = await self._write(key, world, decision)
            if delay is None or not decision.commits:
                pause = _soonest(pause, await self._act(key, world, decision))
            if written is None or world.refusal or not decision.commits:
                again = self._live.read_again_after(world.job)
                return _soonest(delay, decision.requeue_after, pause, again), not (delay or pause)
            world = self._observe(key, written)
            decision = plan(world, self.settings)
            if decision.check:  # The names were free a moment ago.
                decision = replace(decision, check=replace(decision.check, names=()))

    def _plan(self, key: Key, world: World) -> tuple[Decision, float | None]:
        """Plan, but create nothing during a pause; return the seconds that are left of it too."""
        decision = plan(world, self.settings)
        left = self._pauses.left(key, world.job.generation, self.monotonic())
        if not (left and decision.create):
            return decision, None
        return replace(decision, create=[], check=None), left

    async def _show_failure(self, key: Key) -> None:
        """Show a request that fails again and again in the status, or else in an event."""
        failure = self._failures.shown(key)
        if failure is None:
            return
        try:
            job = await self._read_cached(key)
            if job is None:
                return
            world = self._observe(key, job)
            written = await self._write_without_acting(key, world)
        except (ApiError, *TRANSIENT) as error:
            _log.warning("%s/%s: the failure cannot be shown: %s", *key, sentence(error))
            written, job = None, self.jobs.get(key)
        if self._failures.announce(key) and job and not written:
            # The status of a finished job never changes, and others may be what cannot be written.
            event = events.Event("Warning", reasons.REQUEST_FAILED, failure.message)
            self.recorder.record(job, event, self.clock())

    # Step 1 and 3: observe

    async def _read_cached(self, key: Key) -> Job | None:
        if key in self._stale:
            await self._read_live(key)
            self._stale.discard(key)
        job = self.jobs.get(key)
        if job is None:
            self.throttle.forget(key)
            self._live.forget(key)
        return job

    async def _read_live(self, key: Key) -> Job | None:
        """Return the job as the API server has it and update its pods; None if it is gone.

        The pods are read after the job.
        """
        known = self.jobs.uid(key)
        try:
            with requested("read the job"):
                item = await self.api.get(jobs.path(key))
        except ApiError as error:
            if error.code != 404:
                raise
            # A watch that started anew does not report deletions. Drop this uid only: a job that
            # was created under the same name since then stays.
            if known:
                self.jobs.remove(key, known)
            return None
        if not self.jobs.take(item, notify=False):
            return None  # Its labels have changed, so that it belongs to another operator.
        job = self._parse(key, item)
        await self._live.read(key, job)
        return job

    def _parse(self, key: Key, item: Object) -> Job:
        """Return what the server sent, which may be older than what a watch put into the cache."""
        newest = self.jobs.get(key)
        version = item["metadata"]["resourceVersion"]
        return newest if newest and newest.resource_version == version else Job.of(item)

    def _observe(self, key: Key, job: Job) -> World:
        attempt = job.status.attempt
        awaited = corrections.awaited(job.status)
        self.pods.forget(job.uid, before_attempt=attempt or 0, awaited=awaited)
        if job.status.finished:
            self.reports.drop(job.uid)
        use = self.jobs.storage.get(job.uid)
        owners = self.jobs.storage.owners(use) if use else ()
        world = World(
            job=replace(job, unfinished_owners=owners),
            pods=self.pods.made_by(job),
            now=self.clock(),
            report=self.reports.newest(job.uid, attempt),
            silent=self.reports.silent(job.uid, attempt),
            occupied=self._occupied(job, use),
            failure=self._failures.shown(key),
        )
        return with_notices(world, self._pod_events.known)

    def _occupied(self, job: Job, use: StorageUse | None) -> Refusal | None:
        if use is None or not only_prepares(job):
            return None
        return storage_use.refusal(job, use, self.jobs.storage.beside(use))

    # Step 4: check

    async def _check(self, world: World, decision: Decision) -> tuple[World, Decision]:
        """Return the world with the API server's refusal, if any, and the plan for it."""
        if decision.check:
            job = world.job
            refusal = await self._admission.check(job, decision.check, lambda: self._ahead(job))
            if refusal:
                world = replace(world, refusal=refusal)
                decision = plan(world, self.settings)
        return world, decision

    def _ahead(self, job: Job) -> list[Demand]:
        """Return the pods that other jobs of the namespace are about to create."""
        others = [other for other in self.jobs.seen() if other.namespace == job.namespace]
        found = (
            reserved.about_to_exist(other, self.pods.made_by(other), before=job)
            for other in others
            if other.uid != job.uid
        )
        return [demand for demand in found if demand]

    # Step 2 and 5: commit

    async def _write(
        self, key: Key, world: World, decision: Decision
    ) -> tuple[Job | None, float | None]:
        """Write the status if it changed, and queue events about the change.

        Returns the job with the new status, None if nothing was written; and the seconds to wait if
        writes of this kind are throttled.
        """
        job, new = world.job, decision.status
        kind = urgency(job.status, new)
        if kind is Urgency.NONE:
            return None, None
        wait = self.throttle.wait(key, kind, self.monotonic())
        if wait > 0:
            return None, wait
        patch = {
            "metadata": {"resourceVersion": job.resource_version, "uid": job.uid},
            "status": merge_patch(job.status.to_dict(), new.to_dict()),
        }
        with requested("write the status of the job"):
            item = await self.api.patch(f"{jobs.path(key)}/status", patch)
        self.wrote(kind, job, new)
        for event in events.between(job.status, new, decision.prepared):
            self.recorder.record(job, event, world.now)
        self.jobs.take(item, notify=False)
        return self._parse(key, item), None

    # Step 6: act

    async def _act(self, key: Key, world: World, decision: Decision) -> float | None:
        """Carry the decision out; return the seconds until refused pods are created again."""
        job = world.job
        if decision.create:
            self._live.creates(key, job)
        if decision.delete_job:
            await execute.delete_job(self.api, job)
            return None
        await execute.delete(self.api, job, decision.delete)
        try:
            refusal = await execute.create(self.api, job, decision.create)
        except (ApiError, *TRANSIENT):
            self._pauses.extend(key, job.generation, self.monotonic())
            raise
        if refusal:
            pause = self._pauses.extend(key, job.generation, self.monotonic())
            await self._write_refusal(key, job, refusal)
            return pause
        if decision.create:
            self._pauses.end(key)
        return None

    async def _write_refusal(self, key: Key, job: Job, refusal: Refusal) -> None:
        """Show in the status why pods could not be created."""
        # The commit changed the version of the job: plan from the one in the cache.
        newest = self.jobs.get(key)
        if newest is None or newest.uid != job.uid:
            return
        world = replace(self._observe(key, newest), refusal=refusal)
        await self._write_without_acting(key, world)

    async def _write_without_acting(self, key: Key, world: World) -> Job | None:
        """Write what a plan says about the job, but do nothing of it."""
        decision = plan(world, self.settings)
        shown = replace(decision, create=[], delete=[], commits=False, check=None)
        written, _ = await self._write(key, world, shown)
        return written


def guarded(
    reconcile: Callable[[Key], Awaitable[float | None]],
) -> Callable[[Key], Awaitable[float | None]]:
    """Return a function that retries a job later if reconciling it fails unexpectedly.

    A job that triggers a bug must not end the work on all the others.
    """

    async def guard(key: Key) -> float | None:
        try:
            return await reconcile(key)
        except (RetryError, LeaseLostError):
            raise
        except Exception as error:
            _log.exception("%s/%s: reconciling failed and is retried later", *key)
            raise RetryError from error

    return guard


def _soonest(*waits: float | None) -> float | None:
    return min((wait for wait in waits if wait is not None), default=None)
