"""A running job as an earlier operator left it on an API server.

`older_operator.json` was written by the operator of commit 8ac3db3: the status of a running job,
its pods and its Service. That version recorded less about an attempt, ordered the environment of
its pods in another way and had other defaults. Only uids and times were replaced.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.cluster import Cluster
from tests.installed import wait_for
from tests.operator.lives import NODE

OLDER = json.loads((Path(__file__).parent / "older_operator.json").read_text())
# Fields that change with every second that the gang runs.
_ACCOUNTS = ("deviceSeconds", "accountedUntil")


def facts(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the attempts without the fields that change with the time alone."""
    return [{k: v for k, v in a.items() if k not in _ACCOUNTS} for a in status["attempts"]]


@dataclass
class Left:
    """What the earlier operator left, in a namespace."""

    api: Cluster
    namespace: str

    def get(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(
            self.api.kubectl("get", kind, "-n", self.namespace, "-o", "json")
        )["items"]
        return items

    @property
    def versions(self) -> dict[str, str]:
        """The pods' resourceVersions by uid."""
        pods = [pod["metadata"] for pod in self.get("pods")]
        return {pod["uid"]: pod["resourceVersion"] for pod in pods}

    def put(self) -> None:
        job, name = OLDER["job"], OLDER["job"]["metadata"]["name"]
        self._create({**job, "metadata": {"name": name}})
        uid = self.get("ftj")[0]["metadata"]["uid"]
        self._status("ftj", name, job["status"])
        for item in [OLDER["service"], *OLDER["pods"]]:
            text = json.dumps(item).replace(job["metadata"]["uid"], uid)
            mine = json.loads(text)
            status = mine.pop("status", None)
            if mine["kind"] == "Pod":
                mine["spec"]["nodeName"] = NODE
            mine["metadata"] = {
                k: v
                for k, v in mine["metadata"].items()
                if k in ("name", "labels", "annotations", "ownerReferences")
            }
            self._create(mine)
            if status:
                self._status("pod", mine["metadata"]["name"], status)

    def _create(self, item: dict[str, Any]) -> None:
        # Objects in etcd may have fields that the CRD no longer has.
        where = ("create", "--validate=ignore", "-n", self.namespace, "-f", "-")
        self.api.kubectl(*where, stdin=json.dumps(item))

    def _status(self, kind: str, name: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        where = ("-n", self.namespace, "--subresource=status", "--type=merge", "-p", patch)
        self.api.kubectl("patch", kind, name, *where)


@contextmanager
def left_in(api: Cluster, namespace: str) -> Iterator[Left]:
    """Create the objects for the time of the block. The CustomResourceDefinition must exist."""
    api.kubectl("create", "namespace", namespace)
    account = ("get", "serviceaccounts", "-n", namespace, "-o", "name")
    wait_for("the account", lambda: "default" in api.kubectl(*account))
    # Pods that are bound to a node that does not exist would be garbage-collected.
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    api.kubectl("apply", "-f", "-", stdin=json.dumps(node))
    found = Left(api, namespace)
    found.put()
    yield found
    api.kubectl("delete", "namespace", namespace, "--wait=false")
