"""An operator in this process that stops at a given API call and is followed by a new one.

Its caches, queue, reconciler and connection are the real ones. Only kopf is replaced, by a plain
watch, because it cannot be started a hundred times in one process.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import ApiError
from finetune_operator import informer
from finetune_operator.events import Recorder
from finetune_operator.health import Health
from finetune_operator.informer import Pods
from finetune_operator.jobs import Jobs, collection
from finetune_operator.queue import Key, Queue, RetryError
from finetune_operator.reconcile import Reconciler
from finetune_operator.reports import Reports
from finetune_operator.settings import Settings
from finetune_operator.status import Throttle

_TIME_OUT = 0.5  # s; the real one of 10 s would make the tests long
_LATE = 1.0  # s after that; the operator has repeated the call by then
SETTINGS = Settings(trainer_image="trainer:1", restart_backoff=0.0)


class StoppedError(BaseException):
    """Ends the operator like a kill, so it must not be caught by handlers of errors."""


@dataclass
class StoppingKube:
    """Counts the calls of all operators of a job's life, and stops the operator at one of them."""

    kube: Api
    stop_at: int = 0  # 0: never
    after: bool = False  # whether the call takes effect before the stop
    hangs: bool = False  # the call is not answered until the client gives up; nothing stops
    late: bool = False  # a call that hangs takes effect after the client gave up
    calls: list[str] = field(default_factory=list)
    stopped: bool = False
    _late: asyncio.Task[None] | None = None

    async def get(self, path: str, **query: str) -> Object:
        return await self._call("get", path, self.kube.get(path, **query))

    async def list(self, path: str, **query: str) -> tuple[list[Object], str]:
        return await self._call("list", path, self.kube.list(path, **query))

    async def create(self, path: str, body: Object, **query: str) -> None:
        await self._call("create", path, self.kube.create(path, body, **query))

    async def post(self, path: str, body: Object, **query: str) -> Object:
        return await self._call("post", path, self.kube.post(path, body, **query))

    async def patch(self, path: str, body: Object) -> Object:
        return await self._call("patch", path, self.kube.patch(path, body))

    async def delete(self, path: str, body: Object) -> None:
        await self._call("delete", path, self.kube.delete(path, body))

    async def _call(self, verb: str, path: str, call: Coroutine[Any, Any, Any]) -> Any:
        self.calls.append(f"{verb} {path}")
        now = len(self.calls) == self.stop_at
        self.stopped |= now
        if now and self.late:
            self._late = asyncio.create_task(_take_effect_late(call))
        elif now and not self.after:
            call.close()
        else:
            result = await call
        if not now:
            return result
        if self.hangs:
            await asyncio.sleep(_TIME_OUT)
            raise TimeoutError
        raise StoppedError


async def _take_effect_late(call: Coroutine[Any, Any, Any]) -> None:
    await asyncio.sleep(_TIME_OUT + _LATE)
    with contextlib.suppress(ApiError):  # its answer reaches no one
        await call


async def operate(kube: Api, life: StoppingKube, namespace: str) -> None:
    """Run operators one after the other until cancelled."""
    while True:
        try:
            await _one(kube, life, namespace)
        except BaseExceptionGroup as group:
            _, others = group.split(StoppedError)
            if others:
                raise others from None


async def _one(kube: Api, life: StoppingKube, namespace: str) -> None:
    """Run one operator, with empty caches."""
    queue = Queue()
    pods = Pods(queue.add, queue.add_soon)
    jobs = Jobs(queue.add_new, pods.forget)
    reports = Reports(60.0, lambda _: [], queue.add)
    recorder = Recorder(life)
    throttle = Throttle(SETTINGS.progress_write_interval)
    reconciler = Reconciler(
        life,
        jobs,
        pods,
        reports,
        recorder,
        SETTINGS,
        throttle,
    )

    async def reconcile(key: Key) -> float | None:
        # The operator sends events while it does other work. Here one call follows the other, so
        # that each call can be named by its number.
        try:
            delay = await reconciler.reconcile(key)
        except RetryError:
            await recorder.flush()
            raise
        await recorder.flush()
        return delay

    heart = Health().heart("pods", 1e9, filled=False)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(informer.run(kube, pods, namespace, heart))
            await heart.filled.wait()
            group.create_task(_watch(kube, jobs, namespace))
            group.create_task(queue.work(reconcile))
    finally:
        queue.close()


async def _watch(kube: Api, jobs: Jobs, namespace: str) -> None:
    items, version = await kube.list(collection(namespace))
    for item in items:
        jobs.take(item)
    while True:
        async for event in kube.watch(collection(namespace), version):
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                jobs.take(event["object"])
