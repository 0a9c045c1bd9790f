"""Watches the pods that are bound to this node and keeps one `Pod` for each."""

import asyncio
import logging
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node import admission, hosts, leftovers, volumes
from finetune_local.node.addresses import Addresses
from finetune_local.node.api import TRANSIENT, Api, ApiError
from finetune_local.node.events import Recorder
from finetune_local.node.images import Image
from finetune_local.node.lookup import look_up
from finetune_local.node.names import Names
from finetune_local.node.pod import Pod

_log = logging.getLogger(__name__)


class Agent:
    """All pods of one node."""

    def __init__(
        self,
        api: Api,
        name: str,
        state: Path,
        known: dict[str, Image],
        addresses: Addresses,
        devices: int,
        names: Names,
    ) -> None:
        self.pods: dict[str, Pod] = {}  # by uid, until the object is gone and nothing is left
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._api, self._name, self._state, self._known = api, name, state, known
        self._addresses, self._devices = addresses, devices
        self._recorder = Recorder(api, name)
        self._names = names
        names.changed = self._refresh_hosts

    async def run(self) -> None:
        """List, watch, list again when the watch breaks."""
        leftovers.end_processes(self._state)
        selector = {"fieldSelector": f"spec.nodeName={self._name}"}
        first = True
        while True:
            try:
                listed = await self._api.get("/api/v1/pods", **selector)
                if first:
                    keep = {item["metadata"]["uid"] for item in listed["items"]}
                    leftovers.remove_folders(self._state / "pods", keep)
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
            lookup=lambda kind, name: look_up(self._api, namespace, kind, name),
            recorder=self._recorder,
            known=self._known,
            folder=self._state / "pods" / uid,
            ip=item["status"].get("podIP") or self._addresses.next(used),
            hosts=self._hosts,
        )
        others = [other.object for other in self.pods.values() if not other.ended]
        if not pod.is_restored and (refused := admission.refusal(item, others, self._devices)):
            pod.refuse(refused)
        self.pods[uid] = pod
        self._tasks[uid] = asyncio.create_task(pod.run(), name=uid)
        self._tasks[uid].add_done_callback(lambda done: self._ended(uid, done))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _log.error("pod %s", uid, exc_info=error)
        self._tasks.pop(uid, None)
        pod = self.pods[uid]
        volumes.remove(pod.folder)
        if pod.gone:
            del self.pods[uid]

    def _forget(self, uid: str) -> None:
        """The object is gone; until then it is kept, or a late event would start it again."""
        if pod := self.pods.get(uid):
            pod.forget()
            if uid not in self._tasks:
                del self.pods[uid]

    def _hosts(self, item: Object) -> Path:
        pod = self.pods[item["metadata"]["uid"]]
        path = pod.folder / "hosts"
        text = hosts.render(item, pod.state.ip, self._names.pods, self._names.services)
        if not path.exists() or path.read_text() != text:
            hosts.write(path, text)
        return path

    def _refresh_hosts(self) -> None:
        """Pods that run see the names of peers that come later, on whatever node."""
        for pod in self.pods.values():
            if not pod.ended and (pod.folder / "hosts").exists():
                self._hosts(pod.object)
