"""Watches the pods that are bound to this node and keeps one `Pod` running for each."""

import asyncio
import base64
import ipaddress
import logging
from pathlib import Path
from typing import Any

from finetune_local.node import hosts, volumes
from finetune_local.node.api import TRANSIENT, Api, ApiError
from finetune_local.node.events import Recorder
from finetune_local.node.images import Image
from finetune_local.node.pod import Pod, make_private

Object = dict[str, Any]
_log = logging.getLogger(__name__)


class Agent:
    """All pods of one node."""

    def __init__(
        self, api: Api, name: str, state: Path, known: dict[str, Image], network: str
    ) -> None:
        self.pods: dict[str, Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._api, self._name, self._state, self._known = api, name, state, known
        self._recorder = Recorder(api, name)
        self._addresses = [str(ip) for ip in ipaddress.ip_network(network).hosts()]
        self._next_address = 0
        self._gangs: dict[str, list[Object]] = {}

    async def run(self) -> None:
        """List, watch, list again when the watch breaks."""
        selector = {"fieldSelector": f"spec.nodeName={self._name}"}
        first = True
        while True:
            try:
                listed = await self._api.get("/api/v1/pods", **selector)
                self._resync(listed["items"], first=first)
                first = False
                version = listed["metadata"]["resourceVersion"]
                async for event in self._api.watch("/api/v1/pods", version, **selector):
                    self._observe(event)
            except (ApiError, *TRANSIENT) as error:
                _log.warning("watch of pods: %s", error)
                await asyncio.sleep(0.5)

    def _resync(self, items: list[Object], *, first: bool) -> None:
        present = {item["metadata"]["uid"] for item in items}
        for uid in set(self.pods) - present:
            self._forget(uid)
        for item in items:
            if first and _was_running(item):
                item["status"]["agentRestarted"] = True
            self._apply(item)

    def _observe(self, event: Object) -> None:
        if event["type"] == "DELETED":
            self._forget(event["object"]["metadata"]["uid"])
        elif event["type"] in ("ADDED", "MODIFIED"):
            self._apply(event["object"])

    def _apply(self, item: Object) -> None:
        uid = item["metadata"]["uid"]
        pod = self.pods.get(uid)
        if pod is None:
            if item["status"].get("phase") in ("Succeeded", "Failed"):
                if item["metadata"].get("deletionTimestamp"):
                    self._start(item, finished=True)
                return
            pod = self._start(item)
        pod.update(item)
        self._refresh_hosts()

    def _start(self, item: Object, *, finished: bool = False) -> Pod:
        uid = item["metadata"]["uid"]
        pod = Pod(
            item,
            api=self._api,
            lookup=lambda kind, name: self._lookup(item["metadata"]["namespace"], kind, name),
            recorder=self._recorder,
            known=self._known,
            folder=self._state / "pods" / uid,
            ip=self._address(),
            hosts=self._hosts,
        )
        if item["status"].pop("agentRestarted", False):
            pod.state.failed = (
                "NodeAgentRestarted",
                "the node agent was restarted; the pod's processes ended with the old one",
            )
        self.pods[uid] = pod
        task = asyncio.create_task(pod.remove_object() if finished else pod.run(), name=uid)
        task.add_done_callback(lambda done: self._ended(uid, done))
        self._tasks[uid] = task
        return pod

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _log.error("pod %s", uid, exc_info=error)
        pod = self.pods.pop(uid, None)
        self._tasks.pop(uid, None)
        if pod is not None:
            volumes.remove(pod.folder)

    def _forget(self, uid: str) -> None:
        if task := self._tasks.get(uid):
            task.cancel()

    def _address(self) -> str:
        """The next free address; they come round again late, so that no peer meets a stranger."""
        used = {pod.state.ip for pod in self.pods.values()}
        for _ in self._addresses:
            address = self._addresses[self._next_address]
            self._next_address = (self._next_address + 1) % len(self._addresses)
            if address not in used:
                return address
        raise RuntimeError(f"all {len(self._addresses)} pod addresses are in use")

    def _hosts(self, item: Object) -> Path:
        path = self._state / "pods" / str(item["metadata"]["uid"]) / "hosts"
        make_private(path, hosts.render(self._with_ip(item), self._all_pods()))
        return path

    def _refresh_hosts(self) -> None:
        everything = self._all_pods()
        for pod in self.pods.values():
            path = pod.folder / "hosts"
            if pod.object["spec"].get("subdomain") and path.exists():
                text = hosts.render(self._with_ip(pod.object), everything)
                if path.read_text() != text:
                    make_private(path, text)

    def _all_pods(self) -> list[Object]:
        return [self._with_ip(pod.object) for pod in self.pods.values()]

    def _with_ip(self, item: Object) -> Object:
        pod = self.pods.get(item["metadata"]["uid"])
        ip = pod.state.ip if pod else item.get("status", {}).get("podIP")
        return item | {"status": item.get("status", {}) | {"podIP": ip}}

    async def _lookup(self, namespace: str, kind: str, name: str) -> dict[str, str] | None:
        try:
            found = await self._api.get(f"/api/v1/namespaces/{namespace}/{kind}s/{name}")
        except ApiError as error:
            # A node may read only what its pods name; before the API server has noticed that a pod
            # names it, and when it does not exist, the answer is 403.
            if error.code in (403, 404):
                return None
            raise
        data: dict[str, str] = found.get("data", {})
        if kind == "secret":
            return {k: base64.b64decode(v).decode(errors="replace") for k, v in data.items()}
        return data


def _was_running(item: Object) -> bool:
    """Known to be started by an agent before this one."""
    statuses = item["status"].get("containerStatuses", [])
    alive = item["status"].get("phase") not in ("Succeeded", "Failed")
    return alive and any("waiting" not in s.get("state", {}) for s in statuses)
