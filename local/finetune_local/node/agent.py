"""Watches the pods that are bound to this node and runs a `Pod` for each."""

import asyncio
import logging
from pathlib import Path

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError
from finetune_local.node import admission, cleanup, etc_hosts, volumes
from finetune_local.node.addresses import Addresses
from finetune_local.node.config_data import read_data
from finetune_local.node.events import Recorder
from finetune_local.node.images import Image
from finetune_local.node.pod import Pod
from finetune_local.node.pulls import Pulls
from finetune_local.node.service_discovery import ServiceDiscovery

_log = logging.getLogger(__name__)


class Agent:
    """Runs all pods of one node."""

    def __init__(
        self,
        api: Api,
        name: str,
        state: Path,
        known: dict[str, Image],
        addresses: Addresses,
        devices: int,
        discovery: ServiceDiscovery,
    ) -> None:
        self.pods: dict[str, Pod] = {}  # by uid, until the object is gone and the pod has ended
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._api, self._name, self._state, self._known = api, name, state, known
        self._addresses, self._devices = addresses, devices
        self._recorder, self._pulls = Recorder(api, name), Pulls(api, name)
        self._discovery = discovery
        discovery.changed = self._refresh_hosts

    async def run(self) -> None:
        """List and watch the pods, again whenever the watch ends."""
        cleanup.end_processes(self._state)
        selector = {"fieldSelector": f"spec.nodeName={self._name}"}
        first = True
        while True:
            try:
                listed = await self._api.get("/api/v1/pods", **selector)
                if first:
                    keep = {item["metadata"]["uid"] for item in listed["items"]}
                    cleanup.remove_folders(self._state / "pods", keep)
                    first = False
                self._resync(listed["items"])
                version = listed["metadata"]["resourceVersion"]
                async for event in self._api.watch("/api/v1/pods", version, **selector):
                    self._observe(event)
            except (ApiError, *TRANSIENT) as error:
                _log.warning("watch of pods: %s", error)
                await asyncio.sleep(0.5)

    def _resync(self, items: list[Object]) -> None:
        present = {item["metadata"]["uid"] for item in items}
        for uid in set(self.pods) - present:
            self._forget(uid)
        for item in items:
            self._apply(item)

    def _observe(self, event: Object) -> None:
        if event["type"] == "DELETED":
            self._forget(event["object"]["metadata"]["uid"])
        elif event["type"] in ("ADDED", "MODIFIED"):
            self._apply(event["object"])

    def _apply(self, item: Object) -> None:
        uid = item["metadata"]["uid"]
        if uid not in self.pods:
            self._start(item)
        self.pods[uid].update(item)

    def _start(self, item: Object) -> None:
        uid, namespace = item["metadata"]["uid"], item["metadata"]["namespace"]
        used = {pod.state.ip for pod in self.pods.values() if not pod.ended}
        pod = Pod(
            item,
            api=self._api,
            lookup=lambda kind, name: read_data(self._api, namespace, kind, name),
            recorder=self._recorder,
            known=self._known,
            pulls=self._pulls,
            folder=self._state / "pods" / uid,
            ip=item["status"].get("podIP") or self._addresses.next(used),
            hosts=self._hosts,
        )
        others = [other.object for other in self.pods.values() if not other.ended]
        if not pod.is_restored and (
            refused := admission.check_devices(item, others, self._devices)
        ):
            pod.refuse(refused)
        self.pods[uid] = pod
        self._tasks[uid] = asyncio.create_task(pod.run(), name=uid)
        self._tasks[uid].add_done_callback(lambda done: self._handle_end(uid, done))

    def _handle_end(self, uid: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _log.error("pod %s", uid, exc_info=error)
        self._tasks.pop(uid, None)
        pod = self.pods[uid]
        volumes.remove(pod.folder)
        if pod.gone:
            del self.pods[uid]

    def _forget(self, uid: str) -> None:
        """Drop a pod whose object is gone. Dropped earlier, a late event would start it again."""
        if pod := self.pods.get(uid):
            pod.mark_gone()
            if uid not in self._tasks:
                del self.pods[uid]

    def _hosts(self, item: Object) -> Path:
        pod = self.pods[item["metadata"]["uid"]]
        path = pod.folder / "hosts"
        text = etc_hosts.render(item, pod.state.ip, self._discovery.pods, self._discovery.services)
        if not path.exists() or path.read_text() != text:
            etc_hosts.write(path, text)
        return path

    def _refresh_hosts(self) -> None:
        """Add the names of new peers, which may run on any node, to the hosts of running pods."""
        for pod in self.pods.values():
            if not pod.ended and (pod.folder / "hosts").exists():
                self._hosts(pod.object)
