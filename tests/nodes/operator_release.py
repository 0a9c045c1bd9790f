"""The release of the chart on the test cluster."""

import json

from finetune_api.base import Object
from tests.chart.helm import CHART, Helm, Release
from tests.nodes.cluster import TAG, NodeCluster
from tests.nodes.configuration import REGISTRY

NAMESPACE = "finetune-system"


class OperatorRelease:
    """Installs, upgrades and removes the chart, and shows the operator's pods."""

    def __init__(self, cluster: NodeCluster, helm: Helm) -> None:
        self._cluster = cluster
        self._helm = Release(helm, cluster, NAMESPACE)

    def install(self, *arguments: str, tag: str = TAG) -> None:
        """Install or upgrade the release, and wait until its pods are ready."""
        self._cluster.kubectl("apply", "-f", "-", stdin=_NAMESPACE)
        values = {
            "image.repository": f"{REGISTRY}/finetune-operator",
            "image.tag": tag,
            "trainer.image.repository": f"{REGISTRY}/finetune-trainer",
            "trainer.image.tag": tag,
            "reportIntervalSeconds": 1,
            "progressWriteSeconds": 1,
        }
        flags = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        self._helm("upgrade", CHART, "--install", "--wait", "--timeout=180s", *flags, *arguments)

    def uninstall(self) -> None:
        """Remove the release. The definition, and with it the jobs, stays."""
        self._helm("uninstall", "--wait", "--timeout=120s")

    def leave(self, node: str) -> None:
        """Move the operator to another node, because a lost node would stop it for minutes."""
        own = [p["metadata"]["name"] for p in self.pods() if p["spec"].get("nodeName") == node]
        where = ("--namespace", NAMESPACE)
        self._cluster.kubectl("cordon", node)
        try:
            for name in own:
                self._cluster.kubectl("delete", "pod", name, "--timeout=60s", *where)
            status = ("rollout", "status", "deployment/finetune-operator", "--timeout=120s")
            self._cluster.kubectl(*status, *where)
        finally:
            self._cluster.kubectl("uncordon", node)

    def pods(self) -> list[Object]:
        """Return the pods of the operator."""
        where = ("--namespace", NAMESPACE, "--output", "json")
        found: list[Object] = json.loads(self._cluster.kubectl("get", "pods", *where))["items"]
        return found

    def restarts(self) -> int:
        """Return how often containers of the operator's pods were restarted."""
        statuses = [s for pod in self.pods() for s in pod["status"].get("containerStatuses", [])]
        return sum(status["restartCount"] for status in statuses)


_NAMESPACE = f"""
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
"""
