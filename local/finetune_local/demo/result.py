"""What the demo shows at its end, and what there is to try next."""

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
from finetune_local.demo.teller import DemoError, Teller

_QUESTION = "How was your weekend?"
MODEL = OUT / "model"


def show(cluster: Cluster, job: str, base: Path, teller: Teller, *, keep: bool) -> None:
    """The finished job, and its model answering beside the one it was made from."""
    teller.step("Result: kubectl get ftj")
    teller.say(cluster.kubectl("get", "ftj").strip())
    status = json.loads(cluster.kubectl("get", "ftj", job, "-o", "json"))["status"]
    for line in summary(status):
        teller.say(line)
    final = WORKSPACE / "runs" / job / "final"
    if keep:
        shutil.copytree(final, MODEL)
    else:
        final.rename(MODEL)
    teller.step("The model folder, with plain transformers")
    _script("compare.py", str(base), str(MODEL))
    _script("ask.py", _QUESTION, str(base), str(MODEL))
    teller.step("Kept")
    for name in ("model", "finetunejob.yaml", "logs", "operator.log"):
        teller.say(short(name))


def summary(status: dict[str, Any]) -> Iterator[str]:
    """Loss, device hours, checkpoints, output: a line each."""
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


def next_steps(cluster: Cluster, job: str, base: Path, teller: Teller, *, keep: bool) -> None:
    """Commands to copy; the first ones bring the cluster up, or reach the one that is."""
    teller.step("What to try next")
    programs = Path(sys.executable).parent
    path = f"export PATH={programs}:{binaries()}:$PATH"
    if keep:
        teller.say(f"the cluster is still up (KEEP=1), and so is the operator:\n  {path}")
        teller.say(f"  export KUBECONFIG={cluster.kubeconfig}\n  kubectl get ftj,pods")
    else:
        teller.say("bring the cluster up again, and leave it up:\n  KEEP=1 make demo")
        teller.say(f"an empty one:\n  {path}\n  finetune-local up")
    if keep:
        again = f"sed s/{job}/second/ examples/{job}.yaml | kubectl apply -f -"
        teller.say(f"train once more, and delete a pod meanwhile: it resumes\n  {again}")
        teller.say("  kubectl finetune watch second\n  kubectl delete pod second-1-0")
    if MODEL.exists():
        ask = (SCRIPTS / "ask.py").relative_to(TREE)
        teller.say("ask both models something else:")
        teller.say(f'  {programs}/python {ask} "Do you like tea?" {base} {short("model")}')
    teller.say(f"change what is trained and how:\n  examples/{job}.yaml, docs/api.md")
    if keep:
        teller.say(f"end it:\n  finetune-local down --name {cluster.name}")
        teller.say(f"  rm -r {WORKSPACE.relative_to(TREE)}")


def short(name: str) -> str:
    """A file of the run, as seen from the tree."""
    return str((OUT / name).relative_to(TREE))


def _script(name: str, *arguments: str) -> None:
    """One of the example's scripts, its output for the user."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    done = subprocess.run(command, env=env, check=False)
    if done.returncode:
        raise DemoError(f"examples/smollm2/{name} failed ({done.returncode})")
