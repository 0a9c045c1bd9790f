import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_local.cluster import IMAGE, Cluster
from finetune_local.node.registration import DEVICE
from tests.installed import Operator, install
from tests.security import audit, rights
from tests.tools import clusters
from tests.trainer import tiny

VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {{name: w}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteMany]
  storageClassName: ""
  hostPath: {{path: "{path}"}}
  claimRef: {{name: w, namespace: default}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: w}}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  volumeName: w
  resources: {{requests: {{storage: 1Gi}}}}
"""


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two nodes with two devices each, so that a gang of two has a worker on each."""
    two = clusters.up_with_audit_log(f"test-e2e-{os.getpid()}", devices=2, nodes=2)
    yield two
    asked = audit.read(clusters.audit_log(two), audit.user(rights.NAMESPACE, rights.ACCOUNT))
    two.down()
    # Jobs that really run need no other rights than those in tests/security/test_rights.py. Refused
    # requests do not matter here: an API server that has just started does not know its roles yet.
    assert asked.rights <= rights.granted(rights.objects())


@pytest.fixture(scope="package")
def workspace(cluster: Cluster, tmp_path_factory) -> Path:
    """The volume behind the claim `w`, with a tiny model and data."""
    install(cluster)
    folder = make_workspace(tmp_path_factory.mktemp("workspace"))
    cluster.kubectl("apply", "-f", "-", stdin=VOLUME.format(path=folder))
    return folder


def make_workspace(folder: Path) -> Path:
    """Write a tiny model and data into a folder and return it."""
    for parent in (folder, *folder.parents):
        # Only the owner can read folders of pytest, but pods run as another user.
        if parent.name.startswith("pytest") or parent == folder:
            parent.chmod(0o755)
    tiny.make_model(folder / "model")
    tiny.write_jsonl(folder / "data" / "train.jsonl", tiny.make_messages(800))
    tiny.write_jsonl(folder / "data" / "validation.jsonl", tiny.make_messages(20, seed=1))
    return folder


@pytest.fixture
def operator(cluster: Cluster, workspace: Path, tmp_path: Path) -> Iterator[Operator]:
    running = Operator(cluster, tmp_path / "operator.log")
    running.start()
    yield running
    running.kill()


def manifest(name: str, **changes):
    """Return a job that trains the tiny model on devices of the cluster."""
    spec = {
        "model": {"source": "pvc://w/model"},
        "dataset": {
            "train": [{"source": "pvc://w/data/train.jsonl"}],
            "validation": [{"source": "pvc://w/data/validation.jsonl"}],
        },
        "training": {"maxSteps": 120, "globalBatchSize": 4, "sequenceLength": 128},
        "workers": {
            "replicas": 2,
            "deviceResource": DEVICE,
            "image": IMAGE,
        },
        "checkpoints": {"storage": f"pvc://w/runs/{name}", "intervalSteps": 40},
        **changes,
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def create_job(cluster: Cluster, name: str, **changes) -> None:
    """Create a job on the tiny model."""
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(manifest(name, **changes)))


@pytest.fixture
def submit(cluster: Cluster, workspace: Path) -> Callable[..., None]:
    """Return a function that creates a job on the tiny model."""

    return functools.partial(create_job, cluster)
