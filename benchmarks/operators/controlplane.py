"""The control plane of a run, its scripted kubelet, and the clean-up between operators."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.operators.contenders import Contender
from benchmarks.operators.show import console

from finetune_client.api import Api
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster, ClusterError, die_with_parent

_NODE_CONTROLLERS = ("node-lifecycle", "taint-eviction", "pod-garbage-collector")


class ControlPlane(Cluster):
    """A control plane without what needs real nodes, with an audit log of the operators."""

    audit_policy: Any = None

    def _start(self, *, tied: bool) -> None:
        self._adapt()
        super()._start(tied=tied)

    def _adapt(self) -> None:
        (self.directory / "audit.json").write_text(json.dumps(self.audit_policy))
        path = self.directory / "components.json"
        components = [c for c in json.loads(path.read_text()) if c["name"] != "kube-scheduler"]
        for component in components:
            if component["name"] == "kube-apiserver":
                component["command"] += [
                    f"--audit-policy-file={self.directory}/audit.json",
                    f"--audit-log-path={self.directory}/audit.log",
                    "--delete-collection-workers=8",
                ]
            if component["name"] == "kube-controller-manager":
                off = "".join(f",-{name}-controller" for name in _NODE_CONTROLLERS)
                component["command"] = [
                    part + off if part.startswith("--controllers=") else part
                    for part in component["command"]
                ]
        path.write_text(json.dumps(components))


@contextmanager
def kubelet(cluster: Cluster, ends: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the scripted kubelet in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.operators.kubelet"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(cluster.kubeconfig), str(ends)],
            cwd=TREE,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def clean(api: Api, contender: Contender) -> None:
    """Delete all objects, pods first, because the garbage collector deletes them one by one."""
    console.print(f"{contender.name}: removing its objects")
    namespace = f"namespaces/{contender.namespace}"
    now = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
    jobs = f"{contender.collection}/{namespace}/{contender.plural}"
    for path in (f"/api/v1/{namespace}/pods", f"/api/v1/{namespace}/services", jobs):
        await api.delete(path, now)
        deadline = time.monotonic() + 120
        while (await api.get(path, limit="1"))["items"]:
            if time.monotonic() > deadline:
                raise ClusterError(f"{path}: not deleted after 120 s")
            await asyncio.sleep(0.5)
    await api.delete(f"/api/v1/{namespace}/events", now)
