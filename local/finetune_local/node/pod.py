"""The life of one pod on this node, from its binding to its deletion."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node import images, restore, volumes
from finetune_local.node.api import TRANSIENT, Api, ApiError
from finetune_local.node.container import Container
from finetune_local.node.environment import Lookup, UnresolvedError
from finetune_local.node.events import Recorder
from finetune_local.node.images import Image, RefusedError
from finetune_local.node.launch import launch
from finetune_local.node.reporter import Reporter
from finetune_local.node.status import PodState, State, phase

_RETRY = 1.0  # s between looks for what is missing
_IMAGE_RETRY = 3.0
_log = logging.getLogger(__name__)


class Pod:
    """Runs one pod; `update` is called with each new version of the object."""

    def __init__(
        self,
        pod: Object,
        *,
        api: Api,
        lookup: Lookup,
        recorder: Recorder,
        known: dict[str, Image],
        folder: Path,
        ip: str,
        hosts: Callable[[Object], Path],
    ) -> None:
        self.object, self.folder = pod, folder
        self.state = PodState(
            ip=ip,
            host_ip="127.0.0.1",
            init=dict(restore.states(pod, folder, "initContainers")),
            main=dict(restore.states(pod, folder, "containers")),
        )
        # Ended before this agent came: its status is written, its processes are gone.
        self.finished = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        self.containers: dict[str, Container] = {}
        self._api, self._lookup, self._recorder = api, lookup, recorder
        self._known, self._hosts = known, hosts
        self._reporter = Reporter(api, lambda: self.object, self.state)
        self._volumes: dict[str, volumes.Volume] = {}
        self._news = asyncio.Event()  # the object has changed
        self._deleted = asyncio.Event()  # the object is being deleted, or gone
        self.gone = False  # no object any more

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs or will run."""
        return self.finished or self.gone or phase(self.state) in ("Succeeded", "Failed")

    @property
    def is_restored(self) -> bool:
        """Whether an earlier agent had it."""
        states = (*self.state.init.values(), *self.state.main.values())
        return self.finished or any(state.started for state in states)

    def has_ended(self, container: str) -> bool:
        """Whether a container says nothing more."""
        return self._state(container).ended is not None or self.ended

    def update(self, pod: Object) -> None:
        """A newer version of the object."""
        self.object = pod
        self._news.set()
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.set()

    def forget(self) -> None:
        """The object is gone: nothing may go on running, and nobody is told."""
        self.gone = True
        self._news.set()
        self._deleted.set()

    def refuse(self, error: RefusedError) -> None:
        """It will not run."""
        self.state.failed = (error.reason, str(error))

    async def run(self) -> None:
        """Until the object is gone."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        life = asyncio.create_task(self._live())
        try:
            await _first(life, self._deleted)
            if not life.done():
                await self._stop(life)
            if not self.gone:
                await life
            await self._deleted.wait()
            if not self.gone:
                if not self.finished:
                    await self._reporter.report()
                await self._reporter.remove()
        finally:
            await self._end(life)

    async def _live(self) -> None:
        if self.finished:
            return
        try:
            images.check(self.object)
            if self.state.failed is None and await self._prepare():
                await self._init_containers()
                if phase(self.state) != "Failed":
                    await self._main_containers()
        except RefusedError as error:
            self.refuse(error)
        except Exception as error:
            _log.exception("pod %s", self.object["metadata"]["name"])
            self.refuse(RefusedError("NodeError", f"{type(error).__name__}: {error}"))
            await self._kill()
        if self.state.failed is not None:
            await self._recorder.warn(self.object, *self.state.failed)
        await self._reporter.report()

    async def _prepare(self) -> bool:
        """Wait for images and volumes; False when the pod was deleted meanwhile."""
        await self._reporter.report()
        maker = volumes.Volumes(self._api, self.folder, self._lookup)
        while not self._deleted.is_set():
            missing = images.missing(self.object, self._known)
            if missing is not None:
                await self._wait_for("ImagePullBackOff", missing, "Failed", _IMAGE_RETRY)
                continue
            try:
                self._volumes = await maker.make(self.object)
                return True
            except (UnresolvedError, ApiError, *TRANSIENT) as error:
                await self._wait_for("ContainerCreating", _words(error), "FailedMount")
        return False

    async def _wait_for(self, reason: str, message: str, event: str, wait: float = _RETRY) -> None:
        changed = False
        for state in (*self.state.init.values(), *self.state.main.values()):
            if not state.started and (state.waiting, state.message) != (reason, message):
                state.waiting, state.message = reason, message
                changed = True
        if changed:
            await self._recorder.warn(self.object, event, message)
            await self._reporter.report()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._deleted.wait(), wait)

    async def _init_containers(self) -> None:
        for spec in self.object["spec"].get("initContainers", []):
            state = self.state.init[spec["name"]]
            if state.ended is None:
                if not await self._start(spec):
                    return
                await self._reporter.report()
                state.ended = await self.containers[spec["name"]].wait()
            if state.ended.exit_code:
                return

    async def _main_containers(self) -> None:
        specs = self.object["spec"]["containers"]
        waits = []
        try:
            for spec in specs:
                if self.state.main[spec["name"]].ended is not None:
                    continue
                if not await self._start(spec):
                    break
                waits.append(asyncio.create_task(self._finish(spec["name"])))
            await self._reporter.report()
            # Deleted before all were started: those that were are waited for.
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()

    async def _finish(self, name: str) -> None:
        self.state.main[name].ended = await self.containers[name].wait()
        await self._reporter.report()

    async def _start(self, spec: Object) -> bool:
        """Start one container as soon as its environment is complete; False when deleted first."""
        name = spec["name"]
        while not self._deleted.is_set():
            try:
                wanted = await launch(
                    self._with_address(),
                    spec,
                    image=self._known[spec["image"]],
                    places=self._volumes,
                    lookup=self._lookup,
                    hosts=self._hosts(self.object),
                )
            except (UnresolvedError, ApiError, *TRANSIENT) as error:
                await self._wait_for("CreateContainerConfigError", _words(error), "Failed")
                continue
            if self._deleted.is_set():
                return False
            container = Container(wanted, self.folder / "containers" / name)
            self.containers[name] = container
            try:
                await container.start()
            except OSError as error:
                await self._wait_for("CreateContainerError", _words(error), "Failed")
                continue
            self._state(name).started = container.started
            await self._recorder.note(self.object, "Started", f"Started container {name}")
            return True
        return False

    def _state(self, container: str) -> State:
        return self.state.main.get(container) or self.state.init[container]

    def _with_address(self) -> Object:
        told = self.object.get("status", {})
        own = {"podIP": self.state.ip, "hostIP": self.state.host_ip}
        return self.object | {"status": told | own}

    async def _stop(self, life: asyncio.Task[None]) -> None:
        """SIGTERM, the grace that the deletion gives, SIGKILL; the object may go earlier."""
        if self.containers and not self.gone:
            await self._recorder.note(self.object, "Killing", "Stopping the pod's containers")
        for container in self.containers.values():
            container.terminate()
        clock = asyncio.get_running_loop().time
        grace, deadline = -1, math.inf
        while not life.done() and not self.gone:
            told = self.object["metadata"].get("deletionGracePeriodSeconds", 30)
            if told != grace:  # a later deletion can only shorten it
                grace, deadline = told, min(deadline, clock() + told)
            if clock() >= deadline:
                break
            self._news.clear()
            await _first(life, self._news, seconds=deadline - clock())
        for container in self.containers.values():
            container.kill()

    async def _end(self, life: asyncio.Task[None]) -> None:
        """Nothing of the pod may be left when its folder and address are given back."""
        life.cancel()
        await asyncio.wait({life})
        await self._kill()

    async def _kill(self) -> None:
        for name, container in self.containers.items():
            if container.is_started:
                container.kill()
                state = self._state(name)
                state.ended = await container.wait()


async def _first(
    task: asyncio.Task[None], event: asyncio.Event, seconds: float | None = None
) -> None:
    """Until the task has ended, the event is set, or so many seconds have gone."""
    happens = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, happens}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        happens.cancel()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
