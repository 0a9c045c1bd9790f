"""Runs one pod on this node, from its binding to its deletion."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError
from finetune_local.node import admission, images, restart_policy, restore, volumes
from finetune_local.node.admission import RefusedError, all_containers
from finetune_local.node.container import Container
from finetune_local.node.environment import Lookup, UnresolvedError
from finetune_local.node.events import Recorder
from finetune_local.node.images import Image
from finetune_local.node.launch import make_launch
from finetune_local.node.pulls import Pulls
from finetune_local.node.status import PodState, State, phase
from finetune_local.node.status_writer import StatusWriter

_RETRY = 1.0  # s between checks for missing objects
_IMAGE_RETRY = 3.0  # s
_log = logging.getLogger(__name__)


class Pod:
    """A pod on this node; `update` is called with each new version of the object."""

    def __init__(
        self,
        pod: Object,
        *,
        api: Api,
        lookup: Lookup,
        recorder: Recorder,
        known: dict[str, Image],
        pulls: Pulls,
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
        # It ended under an earlier agent: its status is written and its processes are gone.
        self.finished = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        self.containers: dict[str, Container] = {}
        self._api, self._lookup, self._recorder = api, lookup, recorder
        self._known, self._pulls, self._hosts = known, pulls, hosts
        self.state.pulled = self.is_restored
        self._writer = StatusWriter(api, lambda: self.object, self.state)
        self._volumes: dict[str, volumes.Volume] = {}
        self._changed = asyncio.Event()  # the object has changed
        self._deleted = asyncio.Event()  # the object is being deleted or is gone
        self.gone = False  # the object no longer exists

    @property
    def ended(self) -> bool:
        """Whether no container runs or will run."""
        return self.finished or self.gone or phase(self.state) in ("Succeeded", "Failed")

    @property
    def is_restored(self) -> bool:
        """Whether an earlier agent ran it."""
        states = (*self.state.init.values(), *self.state.main.values())
        return self.finished or any(state.started or state.previous for state in states)

    def end_of(self, container: str) -> Callable[[], bool]:
        """Return a function that says whether this run of a container has ended."""
        state = self._state(container)
        restarts = state.restarts
        return lambda: state.ended is not None or state.restarts != restarts or self.ended

    def update(self, pod: Object) -> None:
        """Process a new version of the object."""
        self.object = pod
        self._changed.set()
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.set()

    def mark_gone(self) -> None:
        """End the pod because its object no longer exists; its status is not written."""
        self.gone = True
        self._changed.set()
        self._deleted.set()

    def refuse(self, error: RefusedError) -> None:
        """Fail the pod without running it."""
        self.state.failed = (error.reason, str(error))

    async def run(self) -> None:
        """Run until the object is gone."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        life = asyncio.create_task(self._run_containers())
        try:
            await _wait_for_either(life, self._deleted)
            if not life.done():
                await self._stop(life)
            if not self.gone:
                await life
            await self._deleted.wait()
            if not self.gone:
                if not self.finished:
                    await self._writer.write()
                await self._writer.remove()
        finally:
            await self._clean_up(life)

    async def _run_containers(self) -> None:
        if self.finished:
            return
        try:
            admission.check_supported(self.object)
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
            await self._recorder.warning(self.object, *self.state.failed)
        await self._writer.write()

    async def _prepare(self) -> bool:
        """Wait for images and create the volumes; return False if the pod is deleted first."""
        await self._writer.write()
        pod_volumes = volumes.Volumes(self._api, self.folder, self._lookup)
        while not self._deleted.is_set():
            missing = images.missing(self.object, self._known)
            if missing is not None:
                await self._wait_for("ImagePullBackOff", missing, "Failed", _IMAGE_RETRY)
                continue
            try:
                if not self.state.pulled:
                    await self._pull()
                    continue
                self._volumes = await pod_volumes.make(self.object)
                return True
            except (UnresolvedError, ApiError, *TRANSIENT) as error:
                await self._wait_for("ContainerCreating", _message(error), "FailedMount")
        return False

    async def _pull(self) -> None:
        """Wait until the images are there or the pod is deleted."""
        used = [container["image"] for container in all_containers(self.object)]
        left = await self._pulls.seconds_left(used)
        if left:
            await self._recorder.normal(self.object, "Pulling", f'Pulling image "{used[0]}"')
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._deleted.wait(), left)
                return
        self.state.pulled = True
        await self._writer.write()

    async def _wait_for(self, reason: str, message: str, event: str, wait: float = _RETRY) -> None:
        changed = False
        for state in (*self.state.init.values(), *self.state.main.values()):
            if not state.started and (state.waiting, state.message) != (reason, message):
                state.waiting, state.message = reason, message
                changed = True
        if changed:
            await self._recorder.warning(self.object, event, message)
            await self._writer.write()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._deleted.wait(), wait)

    async def _init_containers(self) -> None:
        for spec in self.object["spec"].get("initContainers", []):
            state = self.state.init[spec["name"]]
            if state.ended is None and not await self._start(spec):
                return
            await self._wait_for_end(spec, init=True)
            if state.ended is None or state.ended.exit_code:
                return

    async def _main_containers(self) -> None:
        specs = self.object["spec"]["containers"]
        waits = []
        try:
            for spec in specs:
                if self.state.main[spec["name"]].ended is None and not await self._start(spec):
                    break
                waits.append(asyncio.create_task(self._wait_for_end(spec)))
            await self._writer.write()
            # If the pod is deleted before all are started, wait for those that were.
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()

    async def _wait_for_end(self, spec: Object, *, init: bool = False) -> None:
        """Wait until a container has ended that the restartPolicy does not start again."""
        name = spec["name"]
        state = self._state(name)
        while True:
            if state.ended is None:
                await self._writer.write()
                state.ended = await self.containers[name].wait()
            if not restart_policy.starts_again(self.object, state, init=init):
                break
            if not await self._wait_for_restart(name, state) or not await self._start(spec):
                state.ended = state.ended or state.previous
                break
        await self._writer.write()

    async def _wait_for_restart(self, name: str, state: State) -> bool:
        """Wait for the delay before the next start; return False if the pod is deleted first."""
        if self._deleted.is_set():
            return False
        seconds = restart_policy.delay(state)
        state.previous, state.started, state.ended = state.ended, None, None
        state.restarts += 1
        if not seconds:
            return True
        state.waiting = "CrashLoopBackOff"
        state.message = f"back-off {seconds:.0f}s restarting failed container={name}"
        await self._recorder.warning(self.object, "BackOff", state.message)
        await self._writer.write()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._deleted.wait(), seconds)
        return not self._deleted.is_set()

    async def _start(self, spec: Object) -> bool:
        """Start one container when its environment is complete; return False if deleted first."""
        name = spec["name"]
        while not self._deleted.is_set():
            try:
                launch = await make_launch(
                    self._with_address(),
                    spec,
                    image=self._known[spec["image"]],
                    pod_volumes=self._volumes,
                    lookup=self._lookup,
                    hosts=self._hosts(self.object),
                )
            except (UnresolvedError, ApiError, *TRANSIENT) as error:
                await self._wait_for("CreateContainerConfigError", _message(error), "Failed")
                continue
            if self._deleted.is_set():
                return False
            container = Container(launch, self.folder / "containers" / name)
            self.containers[name] = container
            try:
                await container.start()
            except OSError as error:
                await self._wait_for("CreateContainerError", _message(error), "Failed")
                continue
            self._state(name).started = container.started
            await self._recorder.normal(self.object, "Started", f"Started container {name}")
            return True
        return False

    def _state(self, container: str) -> State:
        return self.state.main.get(container) or self.state.init[container]

    def _with_address(self) -> Object:
        addresses = {"podIP": self.state.ip, "hostIP": self.state.host_ip}
        return self.object | {"status": self.object.get("status", {}) | addresses}

    async def _stop(self, life: asyncio.Task[None]) -> None:
        """Send SIGTERM, wait for the grace period or until the object is gone, send SIGKILL."""
        if self.containers and not self.gone:
            await self._recorder.normal(self.object, "Killing", "Stopping the pod's containers")
        for container in self.containers.values():
            container.terminate()
        clock = asyncio.get_running_loop().time
        grace, deadline = -1, math.inf
        while not life.done() and not self.gone:
            newest = self.object["metadata"].get("deletionGracePeriodSeconds", 30)
            if newest != grace:  # a later deletion can only shorten the grace period
                grace, deadline = newest, min(deadline, clock() + newest)
            if clock() >= deadline:
                break
            self._changed.clear()
            await _wait_for_either(life, self._changed, seconds=deadline - clock())
        for container in self.containers.values():
            container.kill()

    async def _clean_up(self, life: asyncio.Task[None]) -> None:
        """End all processes before the folder and the address of the pod are reused."""
        life.cancel()
        await asyncio.wait({life})
        await self._kill()

    async def _kill(self) -> None:
        for name, container in self.containers.items():
            if container.is_started:
                container.kill()
                state = self._state(name)
                state.ended = await container.wait()


async def _wait_for_either(
    task: asyncio.Task[None], event: asyncio.Event, seconds: float | None = None
) -> None:
    """Wait until the task has ended, the event is set or so many seconds have passed."""
    is_set = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, is_set}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_set.cancel()


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__
