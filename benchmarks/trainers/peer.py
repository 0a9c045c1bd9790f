"""Runs Hugging Face Trainer with DeepSpeed: hf_trainer.py in a process per rank."""

import argparse
import json
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.trainers.gang import Gang, read
from benchmarks.trainers.measured import Measured, Step
from benchmarks.trainers.workload import LEARNING_RATE, Workload

from finetune_local.ports import free_port

# What our supervisor sets on CPU, so that large tensors are not repeatedly mapped and unmapped.
_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
}
_LOGGED = 10  # steps


def plain(options: argparse.Namespace, work: Workload, out: Path) -> Measured:
    """Train on conversations in random order."""
    return _run(options, work, out, "HF Trainer")


def grouped(options: argparse.Namespace, work: Workload, out: Path) -> Measured:
    """Train on micro-batches of conversations of similar length."""
    return _run(options, work, out, "HF Trainer, group_by_length", grouped=True)


def packed(options: argparse.Namespace, work: Workload, out: Path) -> Measured:
    """Train on micro-batches without padding, whose conversations positions keep apart."""
    return _run(options, work, out, "HF Trainer, packed", packed=True)


def batch(options: argparse.Namespace, work: Workload) -> tuple[int, int]:
    """Return conversations per forward pass and passes per step, as close to ours as possible."""
    share = work.conversations / options.steps / options.world  # conversations per process and step
    micro = options.peer_micro_batch or max(1, round(share / options.accumulate))
    return micro, max(1, round(share / micro))


def _run(
    options: argparse.Namespace,
    work: Workload,
    out: Path,
    name: str,
    *,
    grouped: bool = False,
    packed: bool = False,
) -> Measured:
    micro, accumulate = batch(options, work)
    training = work.config.training
    optimizer = training.optimizer
    folder = Path(tempfile.mkdtemp(prefix="peer-", dir=out))
    settings = {
        "model": str(work.model),
        "data": str(work.unpacked),
        "output": str(folder / "checkpoints"),
        "steps": str(folder / "steps"),
        "micro_batch": micro,
        "accumulate": accumulate,
        "total": options.steps,
        "saved": options.saved,
        "logged": min(_LOGGED, options.steps),  # so that a shorter run is logged, too
        "stage": options.stage,
        "bf16": options.precision == "BF16",
        "recompute": options.recompute,
        "grouped": grouped,
        "packed": packed,
        # Its kernels need a GPU.
        "liger": options.cuda and find_spec("liger_kernel") is not None,
        "learning_rate": LEARNING_RATE,
        "optimizer": {
            "beta1": optimizer.beta1,
            "beta2": training.beta2,
            "epsilon": optimizer.epsilon,
            "weight_decay": optimizer.weight_decay,
        },
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    files = [folder / f"steps.{rank}" for rank in range(options.world)]
    with Gang(out, name) as gang:
        for env in _environments(options):
            command = [sys.executable, "-m", "benchmarks.trainers.hf_trainer"]
            gang.start([*command, str(folder / "settings.json")], env, cuda=options.cuda)
        gang.follow(files[0], options.steps)
        gang.wait()
    shutil.rmtree(folder / "checkpoints")
    steps = [_step(lines) for lines in zip(*map(read, files), strict=True)]
    first, last = options.warm_up, options.saved
    (saved,) = read(files[0], "save")
    losses = [line["loss"] for line in read(files[0], "log")]
    return Measured(
        name=name,
        steps=steps,
        warm_up=first,
        saved=last,
        stall=saved["seconds"],
        first_step=read(files[0])[0]["at"] - gang.started,
        cpu=gang.cpu(last) - gang.cpu(first),
        cpu_steps=slice(first, last),
        loss=sum(losses) / len(losses),
        peak=gang.peak,
        device_peak=gang.device_peak,
        others=gang.others,
    )


def _environments(options: argparse.Namespace) -> list[dict[str, str]]:
    """Return the environment of each rank: what torchrun would set, and as many threads as ours."""
    shared = {
        "WORLD_SIZE": str(options.world),
        "LOCAL_WORLD_SIZE": str(options.world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(options.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if not options.cuda:
        shared |= {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    if options.peer_malloc:
        shared |= _MALLOC
    ranks = map(str, range(options.world))
    return [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ranks]


def _step(ranks: tuple[dict[str, float], ...]) -> Step:
    """Return one step. The seconds are those of rank 0, because ranks wait for each other."""

    def total(name: str) -> int:
        return int(sum(rank[name] for rank in ranks))

    return Step(
        seconds=ranks[0]["seconds"],
        conversations=total("conversations"),
        tokens=total("tokens"),
        trained=total("trained"),
        computed=total("computed"),
    )
