"""Shows the result of the demo and suggests what to try next."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_local.build import binaries
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from finetune_local.demo.inputs import OUT, SCRIPTS, WORKSPACE
from finetune_local.demo.output import DemoError, Output

_QUESTION = "How was your weekend?"
MODEL = OUT / "model"


def show(cluster: Cluster, job: str, base: Path, output: Output, *, keep: bool) -> None:
    """Show the finished job and answers of its model beside those of the base model."""
    output.heading("Result: kubectl get ftj")
    output.line(cluster.kubectl("get", "ftj").strip())
    status = json.loads(cluster.kubectl("get", "ftj", job, "-o", "json"))["status"]
    for line in summary(status):
        output.line(line)
    final = WORKSPACE / "runs" / job / "final"
    if keep:
        shutil.copytree(final, MODEL)
    else:
        final.rename(MODEL)
    output.heading("The model folder, used with plain transformers")
    _run_script("compare.py", str(base), str(MODEL))
    _run_script("ask.py", _QUESTION, str(base), str(MODEL))
    output.heading("Files that are kept")
    for name in ("model", "finetunejob.yaml", "logs", "operator.log"):
        output.line(short(name))


def summary(status: dict[str, Any]) -> Iterator[str]:
    """Yield a line each for the losses, the device hours, every checkpoint and the output."""
    evaluation, usage = status["evaluation"], status["usage"]
    yield (
        f"validation loss  {evaluation['baseline']:.4f} before, {evaluation['last']:.4f} after, "
        "nats per trained token"
    )
    yield (
        f"device hours     {usage['deviceSeconds'] / 3600:.3f}, in seconds "
        f"{usage['deviceSeconds']}: {usage['productiveDeviceSeconds']} productive, "
        f"{usage['lostDeviceSeconds']} lost, {usage['overheadDeviceSeconds']} overhead"
    )
    for checkpoint in status["checkpoints"]:
        state = "verified" if checkpoint["verified"] else "not verified"
        size = checkpoint["sizeBytes"] / 1e6
        yield f"checkpoint       step {checkpoint['step']}, {size:.0f} MB, {state}"
    output = status["output"]
    yield f"output           {output['location']}, {output['sizeBytes'] / 1e6:.0f} MB"


def next_steps(cluster: Cluster, job: str, base: Path, output: Output, *, keep: bool) -> None:
    """Print commands to copy, beginning with those that start the cluster or connect to it."""
    output.heading("What to try next")
    programs = Path(sys.executable).parent
    path = f"export PATH={programs}:{binaries()}:$PATH"
    if keep:
        output.line(f"the cluster and the operator are still up (KEEP=1):\n  {path}")
        output.line(f"  export KUBECONFIG={cluster.kubeconfig}\n  kubectl get ftj,pods")
    else:
        output.line("run the demo again and leave its cluster up:\n  KEEP=1 make demo")
        output.line(f"start an empty cluster:\n  {path}\n  finetune-local up")
    if keep:
        again = f"sed s/{job}/second/ examples/{job}.yaml | kubectl apply -f -"
        output.line(f"train once more and delete a pod meanwhile; the job resumes:\n  {again}")
        output.line("  kubectl finetune watch second\n  kubectl delete pod second-1-0")
    if MODEL.exists():
        ask = (SCRIPTS / "ask.py").relative_to(TREE)
        output.line("ask both models another question:")
        output.line(f'  {programs}/python {ask} "Do you like tea?" {base} {short("model")}')
    output.line(
        f"change the model, the data or the training:\n  examples/{job}.yaml, docs/reference/api.md"
    )
    if keep:
        output.line(f"take the cluster down:\n  finetune-local down --name {cluster.name}")
        output.line(f"  rm -r {WORKSPACE.relative_to(TREE)}")


def short(name: str) -> str:
    """Return the path of a file of the run, relative to the tree."""
    return str((OUT / name).relative_to(TREE))


def _run_script(name: str, *arguments: str) -> None:
    """Run one of the example's scripts, whose output the user sees."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    done = subprocess.run(command, env=env, check=False)
    if done.returncode:
        raise DemoError(f"examples/smollm2/{name} failed ({done.returncode})")
