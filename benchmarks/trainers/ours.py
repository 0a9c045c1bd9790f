"""Runs our trainer: a supervisor, as in a pod, with a rank per process."""

import argparse
import re
import sys
from datetime import datetime
from pathlib import Path

from benchmarks.trainers.gang import Gang, read
from benchmarks.trainers.measured import Measured, Step
from benchmarks.trainers.workload import ADDRESS, Workload, plan

from finetune_trainer.run_dir.paths import RunPaths

_STEP = re.compile(r"^(\S+ \S+) \[rank 0\] step (\d+) of", re.MULTILINE)


def run(options: argparse.Namespace, work: Workload, out: Path) -> Measured:
    """Train and kill the processes after the last step; the final save and export do not count."""
    step_file = RunPaths.of(work.config.replace(attempt=1)).log(1)
    with Gang(out, "ours") as gang:
        start(gang, options, work, out)
        gang.follow(step_file, options.steps)
    logged_lines = read(step_file)
    steps = [
        _step(work, rows, line["seconds"])
        for rows, line in zip(work.rows_of, logged_lines, strict=True)
    ]
    # A step is logged after the next step, or, before a save, after itself.
    logged = _logged(gang.log)
    wait = logged[options.saved + 1] - logged[options.saved]
    after = sum(step.seconds for step in steps[options.saved : options.saved + 2])
    first, last = options.warm_up, options.saved
    return Measured(
        name="ours",
        steps=steps,
        warm_up=first,
        saved=last,
        stall=wait - after,
        first_step=logged[1] - steps[1].seconds - gang.started,
        cpu=gang.cpu(last - 1) - gang.cpu(first),
        cpu_steps=slice(first + 1, last),
        loss=sum(line["loss"] for line in logged_lines) / len(logged_lines),
        peak=gang.peak,
        device_peak=gang.device_peak,
        others=gang.others,
    )


def start(gang: Gang, options: argparse.Namespace, work: Workload, out: Path) -> None:
    """Start a supervisor, which trains, saves and exports."""
    weights = sum(file.stat().st_size for file in work.model.glob("*.safetensors"))
    # Stored in bf16; a checkpoint has 12 bytes per parameter.
    planned = plan(options).replace(checkpoint_bytes=6 * weights)
    config = work.config.replace(role="worker", attempt=1, plan=planned)
    env = {
        "FINETUNE_RUN": config.to_json(),
        "FINETUNE_POD_IP": ADDRESS,
        "FINETUNE_TERMINATION_LOG": str(out / "ours.end"),
        "OMP_NUM_THREADS": str(options.threads),
        "PET_NNODES": "1",
        "PET_NODE_RANK": "0",
        "PET_NPROC_PER_NODE": str(options.world),
        "PET_MASTER_ADDR": ADDRESS,
        "PET_MASTER_PORT": "29500",
    }
    gang.start([sys.executable, "-m", "finetune_trainer"], env, cuda=options.cuda)


def _step(work: Workload, rows: list[int], seconds: float) -> Step:
    tokens = int(work.rows.lengths[rows].sum())
    return Step(
        seconds=seconds,
        conversations=sum(len(work.rows[row].segments) for row in rows),
        tokens=tokens,
        trained=int(work.rows.trained_tokens[rows].sum()),
        computed=tokens,
    )


def _logged(log: Path) -> dict[int, float]:
    """Return when each step was logged, in seconds since the epoch."""
    found = {}
    for moment, step in _STEP.findall(log.read_text(errors="replace")):
        found[int(step)] = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return found
