"""Lives of jobs on a real API server, many at once, each in its own namespace.

A scripted kubelet and a user bring each job through the same life: preparation, a gang, a crash, a
restart, suspension, resumption, success. The end must be the same whatever happens to the operator.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client, config

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import ApiError
from finetune_local.cluster import Cluster
from tests.operator import podstatus
from tests.operator.worlds import OUTPUT, prepared, progressed, result, spec_of

NODE = "scripted-node"
TIMEOUT = 120.0  # s for each step of a life
_JOBS = "/apis/finetune.dev/v1alpha1"


@dataclass
class View:
    """All jobs and pods as an administrator sees them, from two watches that all lives share."""

    kube: Api
    objects: dict[tuple[str, str], dict[str, Object]] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        paths = {"pods": "/api/v1/pods", "jobs": f"{_JOBS}/finetunejobs"}
        # List first, so that a missing right or definition fails here and not by a timeout.
        versions = {kind: (await self.kube.list(path))[1] for kind, path in paths.items()}
        tasks = [
            asyncio.create_task(self._watch(kind, path, versions[kind]))
            for kind, path in paths.items()
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, kind: str, path: str, version: str) -> None:
        while True:
            async for event in self.kube.watch(path, version):
                metadata = event["object"]["metadata"]
                version = metadata["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    continue
                items = self.objects.setdefault((kind, metadata["namespace"]), {})
                if event["type"] == "DELETED":
                    items.pop(metadata["name"], None)
                else:
                    items[metadata["name"]] = event["object"]
                async with self.changed:
                    self.changed.notify_all()

    async def until(self, what: str, check: Callable[[], Any]) -> Any:
        """Wait until `check` returns a true value, and return it."""
        try:
            async with asyncio.timeout(TIMEOUT), self.changed:
                while not (found := check()):
                    await self.changed.wait()
        except TimeoutError:
            raise AssertionError(f"not observed within {TIMEOUT:.0f} s: {what}") from None
        return found


async def add_node(kube: Api) -> None:
    """Create the node; pods on a node that does not exist would be garbage-collected."""
    with contextlib.suppress(ApiError):
        await kube.create("/api/v1/nodes", {"metadata": {"name": NODE}})


async def viewed(api: Cluster, story: Callable[[View], Awaitable[Any]]) -> Any:
    """Run a story with a view of the cluster; return its result."""
    configuration = client.Configuration()
    config.load_kube_config(str(api.kubeconfig), client_configuration=configuration)
    kube = Api(configuration)
    try:
        await add_node(kube)
        view = View(kube)
        async with view.watching():
            return await story(view)
    finally:
        await kube.close()


def _shown(pod: Object) -> str:
    metadata, phase = pod["metadata"], pod.get("status", {}).get("phase")
    due = (
        f", deletion due {metadata['deletionTimestamp']}" if "deletionTimestamp" in metadata else ""
    )
    return f"{metadata['name']} ({phase}{due})"


@dataclass
class Life:
    """The life of one job, with its kubelet and its user."""

    view: View
    namespace: str
    name: str = "a"
    spec: Object = field(default_factory=dict)  # changes to the default spec
    labels: dict[str, str] = field(default_factory=dict)  # of its namespace

    async def live(self) -> None:
        """Bring the job from its creation to its success."""
        await self._begin()
        await self._prepare()
        await self._gang(1)
        lost = result("Failed", reason="PeerLost", **progressed(20, saved=10))
        # The consequence is reported first. After the cause the operator deletes the other worker,
        # and an operator that restarts then would not get that worker's result.
        await self._end(f"{self.name}-1-0", 88, lost)
        await self._end(f"{self.name}-1-1", 137)
        await self._gang(2)
        await self._suspend()
        await self._patch_job({"spec": {"suspend": False}})
        await self._gang(3)
        succeeded = result(output=OUTPUT, **progressed(100, redone=10, saved=100))
        await self._end(f"{self.name}-3-1", 0)
        await self._end(f"{self.name}-3-0", 0, succeeded)
        await self._until("Succeeded", lambda: self.status.get("phase") == "Succeeded")

    # The parts of a life

    async def _begin(self) -> None:
        kube, spaces = self.view.kube, "/api/v1/namespaces"
        metadata = {"name": self.namespace, "labels": self.labels}
        await kube.create(spaces, {"metadata": metadata})
        claim = {
            "metadata": {"name": "w"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        await kube.create(f"{spaces}/{self.namespace}/persistentvolumeclaims", claim)
        await self._account()
        job = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": self.name},
            "spec": spec_of(self.name, **self.spec),
        }
        await kube.create(f"{_JOBS}/namespaces/{self.namespace}/finetunejobs", job)

    async def _account(self) -> None:
        """Wait for the default service account, without which pods are refused."""
        for _ in range(600):
            with contextlib.suppress(ApiError):
                await self.view.kube.get(
                    f"/api/v1/namespaces/{self.namespace}/serviceaccounts/default"
                )
                return
            await asyncio.sleep(0.1)
        raise AssertionError("no service account was created within 60 s")

    async def _prepare(self) -> None:
        name = f"{self.name}-prepare"
        await self._until(name, lambda: name in self.pods)
        await self._run(name)
        await self._end(name, 0, result(prepared=prepared()))

    async def _gang(self, attempt: int) -> None:
        """Start both workers and wait until the operator has observed it."""
        workers = [f"{self.name}-{attempt}-{index}" for index in (0, 1)]
        await self._until(f"gang {attempt}", lambda: set(workers) <= set(self.pods))
        for worker in workers:
            await self._run(worker)
        await self._until(
            f"attempt {attempt} runs",
            lambda: self.status.get("phase") == "Running" and self._attempt(attempt),
        )

    async def _suspend(self) -> None:
        """Suspend the job; the workers save, end, and are removed once their end is accounted for.

        A real kubelet may remove them earlier, so that an operator that restarts has to estimate.
        The simulator covers this; here every life must have the same end.
        """
        await self._patch_job({"spec": {"suspend": True}})
        workers = [f"{self.name}-2-{index}" for index in (0, 1)]
        await self._until("deletion", lambda: all(map(self._is_terminating, workers)))
        stopped = result("Stopped", reason="Stopped", **progressed(40, saved=40))
        await self._end(workers[1], 75)
        await self._end(workers[0], 75, stopped)
        await self._until("settled", lambda: self._attempt(2).get("settled"))
        for worker in workers:
            with contextlib.suppress(ApiError):
                await self.view.kube.delete(self._pod(worker), {"gracePeriodSeconds": 0})
        await self._until("Suspended", lambda: self.conditions.get("Suspended") == "True")

    # What the view has of this job

    @property
    def pods(self) -> dict[str, Object]:
        return self.view.objects.get(("pods", self.namespace), {})

    @property
    def status(self) -> Object:
        job = self.view.objects.get(("jobs", self.namespace), {}).get(self.name, {})
        status: Object = job.get("status", {})
        return status

    @property
    def conditions(self) -> dict[str, str]:
        return {c["type"]: c["status"] for c in self.status.get("conditions", [])}

    def _attempt(self, number: int) -> Object:
        found = [a for a in self.status.get("attempts", []) if a["number"] == number]
        return found[0] if found else {}

    def _is_terminating(self, name: str) -> bool:
        return "deletionTimestamp" in self.pods.get(name, {"metadata": {}})["metadata"]

    def end_state(self) -> Object:
        """Return what must be the same at the end of every life."""
        status = self.status
        usage = status.get("usage", {})
        attempts = [
            {key: a.get(key) for key in ("number", "outcome", "reason", "counted", "estimated")}
            | {"settled": a.get("settled"), "lastStep": a.get("lastStep")}
            for a in status.get("attempts", [])
        ]
        parts = ("productive", "lost", "overhead")
        return {
            "phase": status.get("phase"),
            "reason": status.get("reason"),
            "attempt": status.get("attempt"),
            "attempts": attempts,
            "restarts": status.get("restarts"),
            "countedRestarts": status.get("countedRestarts"),
            "estimated": usage.get("estimated"),
            "addsUp": usage.get("deviceSeconds") == sum(usage[f"{p}DeviceSeconds"] for p in parts),
            "exact": usage.get("deviceSeconds")
            == sum(a["deviceSeconds"] for a in status["attempts"]),
            "pods": sorted(self.pods),
            "conditions": sorted(
                (c["type"], c["status"], c["reason"]) for c in status.get("conditions", [])
            ),
        }

    # Actions of the user and the kubelet

    async def _until(self, what: str, check: Callable[[], Any]) -> Any:
        try:
            return await self.view.until(what, check)
        except AssertionError as error:
            state = f"{self.status.get('phase')} {self.status.get('reason')}: "
            state += f"{self.status.get('message')}; pods {sorted(map(_shown, self.pods.values()))}"
            raise AssertionError(f"{self.namespace}: {error}; {state}") from None

    def _pod(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{name}"

    async def _patch_job(self, patch: Object) -> None:
        path = f"{_JOBS}/namespaces/{self.namespace}/finetunejobs/{self.name}"
        await self.view.kube.patch(path, patch)

    async def _bind(self, name: str) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        binding = {"metadata": {"name": name}, "target": target}
        await self.view.kube.create(f"{self._pod(name)}/binding", binding)

    async def _run(self, name: str) -> None:
        if "nodeName" not in self.pods[name]["spec"]:
            await self._bind(name)
        await self._write(name, podstatus.running())

    async def _end(self, name: str, code: int, message: str = "") -> None:
        await self._write(name, podstatus.terminated(code, message))
        await self._write(name, {"phase": podstatus.final_phase(code)})

    async def _write(self, name: str, status: Object) -> None:
        await self.view.kube.patch(f"{self._pod(name)}/status", {"status": status})
