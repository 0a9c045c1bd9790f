"""Compares the operator's rights with its requests: `python -m tests.security.rights`.

The requests are those of the real operator process with its service account, in a life of a job
that needs every one of them. They come from the audit log of a real API server.
"""

import asyncio
import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from finetune_api.base import Object, format_time
from finetune_client.errors import ApiError
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.installed import Operator, install
from tests.operator import podstatus
from tests.operator.lives import Life, viewed
from tests.operator.worlds import make_spec
from tests.security.audit import Asked, Right, read, user
from tests.tools import clusters

NAMESPACE, ACCOUNT = "finetune-system", "finetune-operator"
LEASE = {"LEASE_NAMESPACE": NAMESPACE, "LEASE_NAME": ACCOUNT, "LEASE_DURATION_SECONDS": "10"}


def objects() -> list[Object]:
    """Return the objects in operator/rbac."""
    return list(yaml.safe_load_all((TREE / "operator" / "rbac" / "role.yaml").read_text()))


def granted(roles: Iterable[Object]) -> set[Right]:
    """Return the rights in Roles and ClusterRoles."""
    return {
        Right(group, resource, verb)
        for role in roles
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@dataclass
class CompleteLife(Life):
    """A job whose life needs every kind of request. Claim and namespace may exist already."""

    async def live(self) -> None:
        await super().live()
        await self._until("deleted by its ttl", lambda: not self.status)

    async def _begin(self) -> None:
        """Create the job, suspend it twice before it has objects, and occupy its name."""
        kube, space = self.view.kube, f"/api/v1/namespaces/{self.namespace}"
        with contextlib.suppress(ApiError):
            await kube.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        await self._account()
        claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        path = f"{space}/persistentvolumeclaims"
        await kube.create(path, {"metadata": {"name": "w"}, "spec": claim})
        container = {"name": "other", "image": "other"}
        pod = {"metadata": {"name": f"{self.name}-prepare"}, "spec": {"containers": [container]}}
        await kube.create(f"{space}/pods", pod)
        policy = {"ttlSecondsAfterFinished": 2}
        job = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": self.name},
            "spec": make_spec(suspend=True, runPolicy=policy),
        }
        path = f"/apis/finetune.dev/v1alpha1/namespaces/{self.namespace}/finetunejobs"
        await kube.create(path, job)
        for _ in range(2):
            await self._until("rests", lambda: self.conditions.get("Suspended") == "True")
            await self._patch_job({"spec": {"suspend": False}})
            await self._until("NameTaken", lambda: self.status.get("reason") == "NameTaken")
            await self._patch_job({"spec": {"suspend": True}})
        await self._until("rests", lambda: self.conditions.get("Suspended") == "True")
        await kube.delete(self._pod(f"{self.name}-prepare"), {"gracePeriodSeconds": 0})
        await self._patch_job({"spec": {"suspend": False}})
        await self._until("a prepare pod of its own", self._own_prepare_pod)
        await self._bound_long_ago(f"{self.name}-prepare")

    async def _bound_long_ago(self, name: str) -> None:
        """Let a pod have had a node for a minute, so that the operator reads its events."""
        await self._bind(name)
        since = format_time(datetime.now(UTC) - timedelta(seconds=60))
        status = {"conditions": [podstatus.condition("PodScheduled", "True", since)]}
        text = f"{name} is bound to node"
        for _ in range(60):
            # Again and again: the scheduler may write the result of an earlier try over it.
            await self.view.kube.patch(f"{self._pod(name)}/status", {"status": status})
            await asyncio.sleep(1)
            if text in self.status.get("message", ""):
                return
        await self._until(text, lambda: text in self.status.get("message", ""))

    def _own_prepare_pod(self) -> bool:
        pod = self.pods.get(f"{self.name}-prepare")
        return bool(pod and "ownerReferences" in pod["metadata"])


def record(api: Cluster, operator: Operator, account: str, namespace: str) -> Asked:
    """Return the requests of the operator from start to end, during a complete life of a job."""
    log = clusters.audit_log(api)
    since = log.stat().st_size if log.exists() else 0
    operator.start()
    try:
        asyncio.run(viewed(api, lambda view: CompleteLife(view, namespace).live()))
        if operator.stop() != 0:
            raise AssertionError(operator.log)
    finally:
        operator.kill()
    return read(log, account, since)


def record_everywhere(api: Cluster, folder: Path) -> Asked:
    """Return the requests of an operator for all namespaces, with leader election."""
    install(api)
    lease = ("delete", "lease", ACCOUNT, "--namespace", NAMESPACE, "--ignore-not-found")
    api.kubectl(*lease)
    operator = Operator(api, folder / "operator.log", **LEASE)
    return record(api, operator, user(NAMESPACE, ACCOUNT), "rights-everywhere")


def table(rights: set[Right], asked: Asked) -> str:
    """Return one line for each right with the number of its uses."""
    counts = Counter(request.right for request in asked.requests)
    rows = [
        f"{right!s:40} {'granted' if right in rights else 'MISSING':8} {counts[right]:5} calls"
        for right in sorted(rights | asked.rights)
    ]
    return "\n".join([*rows, f"read without a right: {', '.join(sorted(asked.paths))}"])


def main() -> int:
    """Start a control plane, record and print the requests; 1 if rights and requests differ."""
    with tempfile.TemporaryDirectory() as folder:
        api = clusters.up_with_audit_log("test-rights", nodes=0)
        try:
            asked = record_everywhere(api, Path(folder))
        finally:
            api.down()
    rights = granted(objects())
    print(table(rights, asked))
    return 0 if rights == asked.rights else 1


if __name__ == "__main__":
    sys.exit(main())
