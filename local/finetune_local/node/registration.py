"""Keeps the Node object and its lease up to date."""

import asyncio
import logging
import os
import platform
from datetime import UTC, datetime

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError
from finetune_local.node.exec_server import FEATURE
from finetune_local.node.status import stamp

DEVICE = "finetune.dev/cpu-device"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Kubernetes names them
_log = logging.getLogger(__name__)


class Registration:
    """Registers one node and renews its lease."""

    def __init__(self, api: Api, name: str, address: str, devices: int, port: int) -> None:
        self._api, self._name, self._address = api, name, address
        self._devices, self._port = devices, port

    async def run(self) -> None:
        """Register the node, then renew its lease and status without end, despite API errors."""
        registered = False
        while True:
            try:
                if not registered:
                    await self._register()
                    registered = True
                await self._renew()
                await self._api.patch(
                    f"/api/v1/nodes/{self._name}/status", {"status": self._status()}
                )
            except (ApiError, *TRANSIENT) as error:
                _log.warning("node %s: %s", self._name, error)
                registered = registered and not (isinstance(error, ApiError) and error.code == 404)
                await asyncio.sleep(0.5)
                continue
            await asyncio.sleep(4)

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self._name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _ARCHITECTURES[platform.machine()],
        }
        body = {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": {"name": self._name, "labels": labels},
        }
        try:
            await self._api.create("/api/v1/nodes", body)
        except ApiError as error:
            if error.code != 409:
                raise

    async def _renew(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self._name, "leaseDurationSeconds": 20, "renewTime": now}
        try:
            await self._api.patch(f"{_LEASES}/{self._name}", {"spec": spec})
        except ApiError as error:
            if error.code != 404:
                raise
            await self._api.create(_LEASES, {"metadata": {"name": self._name}, "spec": spec})

    def _status(self) -> Object:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
        resources = {
            "cpu": str(os.cpu_count()),
            "memory": f"{memory}Ki",
            "ephemeral-storage": "100Gi",
            "pods": "110",
            DEVICE: str(self._devices),
        }
        now = stamp(datetime.now(UTC))
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "AgentReady",
            "message": "process node is ready",
            "lastHeartbeatTime": now,
        }
        return {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [ready],
            "declaredFeatures": [FEATURE],
            "addresses": [
                {"type": "InternalIP", "address": self._address},
                {"type": "Hostname", "address": self._name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
            "nodeInfo": {
                "machineID": self._name,
                "systemUUID": self._name,
                "bootID": self._name,
                "kernelVersion": platform.release(),
                "osImage": "processes of this machine",
                "containerRuntimeVersion": "process://0.1",
                "kubeletVersion": "v1.37.2",
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": _ARCHITECTURES[platform.machine()],
            },
        }
