"""The life of one pod on this node, from its binding to its deletion."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_local.node import images, volumes
from finetune_local.node.api import TRANSIENT, Api, ApiError
from finetune_local.node.container import Container, Launch
from finetune_local.node.environment import Lookup, UnresolvedError, environment, expand
from finetune_local.node.events import Recorder
from finetune_local.node.images import Image, RefusedError
from finetune_local.node.status import PodState, State, phase, status

Object = dict[str, Any]
_RETRY = 1.0  # s between looks for what is missing
_IMAGE_RETRY = 3.0


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
        spec = pod["spec"]
        self.object = pod
        self.folder = folder
        self.state = PodState(
            ip=ip,
            host_ip="127.0.0.1",
            init={c["name"]: State() for c in spec.get("initContainers", [])},
            main={c["name"]: State() for c in spec["containers"]},
        )
        self.containers: dict[str, Container] = {}
        self._api, self._lookup, self._recorder = api, lookup, recorder
        self._known, self._hosts = known, hosts
        self._deleted = asyncio.Event()
        self._path = (
            f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/" + (pod["metadata"]["name"])
        )
        self._volumes: dict[str, volumes.Volume] = {}

    @property
    def ended(self) -> bool:
        """Whether every container has ended, or none will start."""
        return phase(self.state) in ("Succeeded", "Failed")

    def update(self, pod: Object) -> None:
        """A newer version of the object."""
        self.object = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.set()

    def vanish(self) -> None:
        """The object is gone (deleted by force): nothing may go on running."""
        for container in self.containers.values():
            container.kill()

    async def run(self) -> None:
        """Until the object is gone."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        life = asyncio.create_task(self._live())
        deletion = asyncio.create_task(self._deleted.wait())
        try:
            await asyncio.wait({life, deletion}, return_when=asyncio.FIRST_COMPLETED)
            if deletion.done() and not life.done():
                await self._stop(life)
            await life
            await self._deleted.wait()
            await self._report()
            await self.remove_object()
        finally:
            deletion.cancel()
            life.cancel()
            self.vanish()

    async def _live(self) -> None:
        try:
            images.check(self.object)
            if self.state.failed is None and await self._prepare():
                await self._init_containers()
                if phase(self.state) != "Failed":
                    await self._main_containers()
        except RefusedError as error:
            self.state.failed = (error.reason, str(error))
            await self._recorder.warn(self.object, error.reason, str(error))
        await self._report()

    async def _prepare(self) -> bool:
        """Wait for images and volumes; False when the pod was deleted meanwhile."""
        await self._report()
        while not self._deleted.is_set():
            try:
                await self._check_images()
                maker = volumes.Volumes(self._api, self.folder, self._lookup)
                self._volumes = await maker.make(self.object)
                return True
            except UnresolvedError as error:
                await self._wait_for("ContainerCreating", str(error), "FailedMount")
            except TRANSIENT:
                await asyncio.sleep(_RETRY)
        return False

    async def _check_images(self) -> None:
        while not self._deleted.is_set():
            specs = [
                *self.object["spec"].get("initContainers", []),
                *self.object["spec"]["containers"],
            ]
            missing = next((c["image"] for c in specs if c["image"] not in self._known), None)
            if missing is None:
                return
            message = (
                f'Back-off pulling image "{missing}": this node pulls nothing, it knows '
                f"{', '.join(sorted(self._known))}"
            )
            await self._wait_for("ImagePullBackOff", message, "Failed", _IMAGE_RETRY)

    async def _wait_for(self, reason: str, message: str, event: str, wait: float = _RETRY) -> None:
        changed = False
        for state in (*self.state.init.values(), *self.state.main.values()):
            changed |= (state.waiting, state.message) != (reason, message)
            if not state.ended:
                state.waiting, state.message = reason, message
        if changed:
            await self._recorder.warn(self.object, event, message)
            await self._report()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._deleted.wait(), wait)

    async def _init_containers(self) -> None:
        for spec in self.object["spec"].get("initContainers", []):
            state = self.state.init[spec["name"]]
            if not await self._start(spec, state):
                return
            await self._report()
            state.ended = await self.containers[spec["name"]].wait()
            if state.ended.exit_code:
                return

    async def _main_containers(self) -> None:
        specs = self.object["spec"]["containers"]
        for spec in specs:
            if not await self._start(spec, self.state.main[spec["name"]]):
                return
        await self._report()

        async def finish(name: str) -> None:
            self.state.main[name].ended = await self.containers[name].wait()
            await self._report()

        await asyncio.gather(*(finish(spec["name"]) for spec in specs))

    async def _start(self, spec: Object, state: State) -> bool:
        """Start one container as soon as its environment is complete; False when deleted first."""
        while not self._deleted.is_set():
            try:
                launch = await self._launch(spec)
            except UnresolvedError as error:
                await self._wait_for("CreateContainerConfigError", str(error), "Failed")
                continue
            except TRANSIENT:
                await asyncio.sleep(_RETRY)
                continue
            folder = self.folder / "containers" / spec["name"]
            container = Container(launch, folder)
            folder.mkdir(parents=True, exist_ok=True)
            await container.start()
            self.containers[spec["name"]] = container
            state.started = container.started
            await self._recorder.note(self.object, "Started", f"Started container {spec['name']}")
            return True
        return False

    async def _launch(self, spec: Object) -> Launch:
        metadata = self.object["metadata"]
        image = self._known[spec["image"]]
        user, group = images.identity(self.object, spec, image)
        pod = self.object | {
            "status": self.object.get("status", {})
            | {"podIP": self.state.ip, "hostIP": "127.0.0.1"}
        }
        env = await environment(pod, spec, self._lookup)
        words = [*spec["command"], *spec.get("args", [])]
        return Launch(
            name=spec["name"],
            command=[expand(word, env) for word in words],
            env={"HOSTNAME": metadata["name"]} | image.env | env,
            cwd=spec.get("workingDir", "/"),
            user=user,
            group=group,
            hostname=self.object["spec"].get("hostname", metadata["name"])[:63],
            hosts=self._hosts(self.object),
            mounts=[mount.to_dict() for mount in volumes.mounts(spec, self._volumes)],
            termination_path=spec.get("terminationMessagePath", "/dev/termination-log"),
            fall_back_to_logs=spec.get("terminationMessagePolicy") == "FallbackToLogsOnError",
        )

    async def _stop(self, life: asyncio.Task[None]) -> None:
        """SIGTERM, the grace that the deletion gives, SIGKILL."""
        grace = self.object["metadata"].get("deletionGracePeriodSeconds", 30)
        if self.containers:
            await self._recorder.note(self.object, "Killing", "Stopping the pod's containers")
        for container in self.containers.values():
            container.terminate()
        done, _ = await asyncio.wait({life}, timeout=grace)
        if not done:
            for container in self.containers.values():
                container.kill()

    async def _report(self) -> None:
        body = {"status": status(self.object, self.state, datetime.now(UTC))}
        body["metadata"] = {"uid": self.object["metadata"]["uid"]}
        while True:
            try:
                await self._api.patch(f"{self._path}/status", body)
                return
            except ApiError as error:
                if error.code in (404, 409, 422):
                    return  # gone, or another pod of that name
                await asyncio.sleep(_RETRY)
            except TRANSIENT:
                await asyncio.sleep(_RETRY)

    async def remove_object(self) -> None:
        """Confirm to the API server that nothing of the pod is left."""
        uid = self.object["metadata"]["uid"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        while True:
            try:
                await self._api.delete(self._path, body)
                return
            except ApiError as error:
                if error.code in (404, 409):
                    return
                await asyncio.sleep(_RETRY)
            except TRANSIENT:
                await asyncio.sleep(_RETRY)


def make_private(path: Path, text: str) -> None:
    """Write in place: what is bind-mounted keeps its inode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
