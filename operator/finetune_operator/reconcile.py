"""One look at one job: observe, plan, check, write, act."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api import names
from finetune_api.base import Object
from finetune_operator import execute, informer, jobs
from finetune_operator.events import Recorder
from finetune_operator.informer import Pods
from finetune_operator.jobs import Jobs
from finetune_operator.kube import TRANSIENT, ApiError, Requests
from finetune_operator.lease import LeaseLostError
from finetune_operator.plan import events
from finetune_operator.plan.decision import Decision
from finetune_operator.plan.observe import Job, World
from finetune_operator.plan.planner import only_prepares, plan
from finetune_operator.queue import Key, RetryError
from finetune_operator.reports import Reports
from finetune_operator.settings import Settings
from finetune_operator.status import Throttle, Urgency, merge_patch, urgency

_log = logging.getLogger("finetune.reconcile")
_UNLISTED = 5.0  # s until the next look at a job whose namespace does not tell its pods


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)  # Kubernetes times have whole seconds


@dataclass
class Reconciler:
    """Brings jobs forward, one look at a time."""

    kube: Requests
    jobs: Jobs
    pods: Pods
    reports: Reports
    recorder: Recorder
    settings: Settings
    throttle: Throttle
    clock: Callable[[], datetime] = _now
    wrote: Callable[[Urgency], None] = lambda _: None
    _stale: set[Key] = field(default_factory=set)

    async def reconcile(self, key: Key) -> float | None:
        """Seconds until the next look, None when an event will tell."""
        try:
            return await self._look(key)
        except ValidationError as error:
            _log.error("%s/%s cannot be read by this version: %s", *key, error)
            return None
        except ApiError as error:
            if error.code in (404, 409):
                self._stale.add(key)  # planned from an old version, or from a job that is gone
            else:
                _log.warning("%s/%s: %s", *key, error)
            raise RetryError from error
        except TRANSIENT as error:
            _log.warning("%s/%s: the API server does not answer (%s)", *key, error)
            raise RetryError from error

    async def _look(self, key: Key) -> float | None:
        if key in self._stale:
            await self._refresh(key)
            self._stale.discard(key)
        job = self.jobs.get(key)
        if job is None:
            self.throttle.forget(key)
            return None
        if not self.pods.listed(job.namespace):
            return _UNLISTED
        world = self._observe(job)
        decision = plan(world, self.settings)
        if not decision.acts:
            written, delay = await self._write(key, world, decision)
            if written:
                await self._tell([(world, decision)])
            return _soonest(delay, decision.requeue_after)
        # Caches are good enough to see that something is to be done, not to do it.
        live = await self._refresh(key)
        if live is None:
            return None
        fresh = self._observe(live)
        return await self._carry_out(key, fresh, decision if fresh == world else None)

    async def _carry_out(self, key: Key, world: World, decision: Decision | None) -> float | None:
        """Check, commit, act.

        What a commit leads to is planned from its own answer and the pods that were just listed:
        the commit would have failed if anybody had changed the job since it was read.
        """
        told: list[tuple[World, Decision]] = []
        try:
            wait = await self._steps(key, world, decision, told)
        except Exception:
            await self._tell(told)
            raise
        await self._tell(told)  # last, for people can wait, and devices cost
        return wait

    async def _steps(
        self,
        key: Key,
        world: World,
        decision: Decision | None,
        told: list[tuple[World, Decision]],
    ) -> float | None:
        """`decision` is the plan for this very world, None when it was not made yet."""
        while True:
            decision = decision or plan(world, self.settings)
            refusal = None
            if decision.check:
                refusal = await execute.admit(self.kube, world.job, decision.check)
            if refusal:
                world = replace(world, refusal=refusal)
                decision = plan(world, self.settings)
            written, delay = await self._write(key, world, decision)
            told.append((world, decision))
            if delay is None:
                await self._act(key, world, decision)
            if written is None or refusal or not decision.commits:
                return _soonest(delay, decision.requeue_after)
            world, decision = self._observe(written), None

    def _observe(self, job: Job) -> World:
        attempt = job.status.attempt
        self.pods.forget(job.uid, before_attempt=attempt or 0)
        if job.status.finished:
            self.reports.drop(job.uid)
        return World(
            job=job,
            pods=self.pods.made_by(job),
            now=self.clock(),
            report=self.reports.newest(job.uid, attempt),
            silent=self.reports.silent(job.uid),
        )

    async def _refresh(self, key: Key) -> Job | None:
        """The live job, its pods read after it where they matter; None when it is gone."""
        known = self.jobs.uid(key)
        try:
            item = await self.kube.get(jobs.path(key))
        except ApiError as error:
            if error.code != 404:
                raise
            # A watch that was too old does not tell what went meanwhile; what was created under
            # that name since stays.
            if known:
                self.jobs.remove(key, known)
            return None
        if not self.jobs.take(item, tell=False):
            return None  # its labels have moved: another operator's now
        job = self._read(key, item)
        if not only_prepares(job):
            # The server looks through all pods of the namespace for these few.
            selector = f"{names.LABEL_JOB_UID}={job.uid}"
            found, _ = await self.kube.list(informer.path(key[0]), labelSelector=selector)
            self.pods.replace(found, key[0], job.uid, tell=False)
        return job

    def _read(self, key: Key, item: Object) -> Job:
        """What the server answered, which a watch may have overtaken in the cache."""
        newest = self.jobs.get(key)
        version = item["metadata"]["resourceVersion"]
        return newest if newest and newest.resource_version == version else Job.of(item)

    async def _write(
        self, key: Key, world: World, decision: Decision
    ) -> tuple[Job | None, float | None]:
        """Write the status if it tells something new.

        The job as it was answered, None when nothing was written; seconds to wait when it is not
        its turn.
        """
        job, new = world.job, decision.status
        kind = urgency(job.status, new)
        if kind is Urgency.NONE:
            return None, None
        wait = self.throttle.wait(key, Urgency.NOW if decision.acts else kind, time.monotonic())
        if wait > 0:
            return None, wait
        patch = {
            "metadata": {"resourceVersion": job.resource_version, "uid": job.uid},
            "status": merge_patch(job.status.to_dict(), new.to_dict()),
        }
        answer = await self.kube.patch(f"{jobs.path(key)}/status", patch)
        self.wrote(kind)
        self.jobs.take(answer, tell=False)
        return self._read(key, answer), None

    async def _tell(self, told: list[tuple[World, Decision]]) -> None:
        """Events of what these decisions have changed."""
        for world, decision in told:
            for event in events.between(world.job.status, decision.status):
                await self.recorder.record(world.job, event, world.now)

    async def _act(self, key: Key, world: World, decision: Decision) -> None:
        job = world.job
        if decision.delete_job:
            await execute.delete_job(self.kube, job)
            return
        await execute.delete(self.kube, job, decision.delete)
        refusal = await execute.create(self.kube, job, decision.create)
        if refusal is None:
            return
        # The write above changed the version: the next look starts from the one in the cache.
        newest = self.jobs.get(key)
        if newest is None or newest.uid != job.uid:
            return
        world = replace(self._observe(newest), refusal=refusal)
        refused = replace(plan(world, self.settings), create=[], delete=[], commits=False)
        written, _ = await self._write(key, world, replace(refused, check=None))
        if written:
            await self._tell([(world, refused)])
        raise RetryError


def guarded(
    look: Callable[[Key], Awaitable[float | None]],
) -> Callable[[Key], Awaitable[float | None]]:
    """A job that we fail on is tried again later: it must not end the work on all the others."""

    async def guard(key: Key) -> float | None:
        try:
            return await look(key)
        except (RetryError, LeaseLostError):
            raise
        except Exception as error:
            _log.exception("%s/%s: this look at it failed, the next one comes later", *key)
            raise RetryError from error

    return guard


def _soonest(*waits: float | None) -> float | None:
    return min((wait for wait in waits if wait is not None), default=None)
