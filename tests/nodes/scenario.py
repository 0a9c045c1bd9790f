"""One scenario: a namespace at Pod Security restricted with a volume, its jobs, and a record."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.base import Object
from finetune_local.machine import ClusterError
from finetune_operator import informer, jobs
from tests import installed
from tests.installed import ask, read
from tests.nodes.cluster import DEVICE, TAG, NodeCluster
from tests.nodes.configuration import REGISTRY
from tests.trainer import tiny

USER = 65532  # of the images
_NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata:
  name: {name}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteMany]
  storageClassName: ""
  hostPath: {{path: "{path}", type: Directory}}
  claimRef: {{name: w, namespace: {name}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: w, namespace: {name}}}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  volumeName: {name}
  resources: {{requests: {{storage: 1Gi}}}}
"""


class Scenario:
    """A namespace in which one test runs its jobs. The volume is visible on every node."""

    def __init__(self, cluster: NodeCluster, name: str, inputs: Path) -> None:
        self.cluster, self.namespace = cluster, name
        self.volume = cluster.folder / "volumes" / name
        shutil.copytree(inputs, self.volume)
        for path in (self.volume, *self.volume.rglob("*")):
            os.chown(path, USER, USER)
        objects = _NAMESPACE.format(name=name, path=self.volume)
        cluster.kubectl("apply", "-f", "-", stdin=objects)

    def remove(self) -> None:
        """Delete the namespace, and wait until no pod and no container of it is left."""
        self.kubectl("delete", "ftj", "--all", "--wait=false")
        # Pods of a job have minutes for a checkpoint, which no test reads after this.
        self.kubectl("delete", "pods", "--all", "--grace-period=5", "--timeout=120s")
        self.cluster.kubectl("delete", "namespace", self.namespace, "--timeout=120s")
        self.cluster.kubectl("delete", "pv", self.namespace, "--timeout=60s")
        shutil.rmtree(self.volume)

    @property
    def trainer_image(self) -> str:
        return f"{REGISTRY}/finetune-trainer:{TAG}"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def submit(self, name: str, **changes: Any) -> None:
        """Create a job of two workers that trains the tiny model."""
        self.kubectl("create", "-f", "-", stdin=json.dumps(manifest(name, **changes)))

    def patch(self, name: str, **spec: Any) -> None:
        """Change fields of a job's spec."""
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", "ftj", name, "--type=merge", "--patch", patch)

    def status(self, name: str) -> Object:
        found: Object = ask(self.cluster, jobs.path((self.namespace, name))).get("status", {})
        return found

    def pods(self) -> dict[str, Object]:
        """Return the pods of the namespace by their names."""
        found = ask(self.cluster, informer.path(self.namespace))["items"]
        return {pod["metadata"]["name"]: pod for pod in found}

    def node_of(self, pod: str) -> str:
        """Wait until a pod is bound to a node, and return the name of the node."""
        bound = self.until(
            f"{pod} to be bound", lambda: self.pods().get(pod, {}).get("spec", {}).get("nodeName")
        )
        return str(bound)

    def events(self, job: str) -> list[Object]:
        """Return the events of a job, oldest first."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        items: list[Object] = ask(self.cluster, path, fieldSelector=f"involvedObject.name={job}")[
            "items"
        ]
        return sorted(items, key=lambda item: str(item["metadata"]["creationTimestamp"]))

    def log(self, pod: str) -> str:
        return read(self.cluster, f"{informer.path(self.namespace)}/{pod}/log", container="trainer")

    def until(self, what: str, check: Callable[[], Any], seconds: float = 240) -> Any:
        """Wait until `check` returns something true, and return that.

        Requests that fail are repeated, because scenarios also stop the API server.
        """

        def checked() -> Any:
            try:
                return check()
            except ClusterError:
                return None

        return installed.wait_for(what, checked, seconds)

    def until_step(self, name: str, step: int, attempt: int = 1, seconds: float = 420) -> None:
        """Wait until the log of worker 0 shows a step of an attempt."""
        pod = f"{name}-{attempt}-0"
        shown = re.compile(r"step (\d+) of")
        self.until(
            f"{pod} to finish step {step}",
            lambda: any(int(n) >= step for n in shown.findall(self.log(pod))),
            seconds,
        )

    def finished(self, name: str, seconds: float = 480) -> Object:
        """Wait until a job has ended, and return its status."""

        def ended() -> Object | None:
            found = self.status(name)
            return found if found.get("phase") in ("Succeeded", "Failed") else None

        done: Object = self.until(f"{name} to end", ended, seconds)
        return done

    def succeeded(self, name: str, seconds: float = 480) -> Object:
        """Wait until a job has ended, check that it succeeded, and return its status."""
        done = self.finished(name, seconds)
        assert done["phase"] == "Succeeded", done["message"]
        assert (self.volume / "runs" / name / "final" / "model.safetensors").is_file()
        return done


def make_inputs(folder: Path) -> Path:
    """Write a tiny model and its data, for copies of which jobs are trained."""
    tiny.make_model(folder / "model")
    tiny.write_jsonl(folder / "data" / "train.jsonl", tiny.make_messages(400))
    tiny.write_jsonl(folder / "data" / "validation.jsonl", tiny.make_messages(10, seed=1))
    return folder


def manifest(name: str, **changes: Any) -> Object:
    """Return a job of two workers. The image is the chart's."""
    spec = {
        "model": {"source": "pvc://w/model"},
        "dataset": {
            "train": [{"source": "pvc://w/data/train.jsonl"}],
            "validation": [{"source": "pvc://w/data/validation.jsonl"}],
        },
        "training": {"maxSteps": 60, "globalBatchSize": 6, "sequenceLength": 128},
        "workers": workers(2),
        "checkpoints": {"storage": f"pvc://w/runs/{name}", "intervalSteps": 20},
        **changes,
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def workers(replicas: int, container: Object | None = None, **pod: Any) -> Object:
    """Return spec.workers, with fields of the pods and of their trainer container.

    A pod of a lost node is deleted after 10 s instead of after 5 minutes.
    """
    tolerations = [
        {
            "key": f"node.kubernetes.io/{key}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 10,
        }
        for key in ("not-ready", "unreachable")
    ]
    # More threads than cores would spend their time waiting for each other.
    env = [{"name": "OMP_NUM_THREADS", "value": "1"}]
    trainer = {"name": "trainer", "env": env} | (container or {})
    spec = {"tolerations": tolerations, "containers": [trainer]} | pod
    return {"replicas": replicas, "deviceResource": DEVICE, "template": {"spec": spec}}
