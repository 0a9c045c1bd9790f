"""Measures a large matmul that all processes run at the same time: 100 % of MFU.

`python -m benchmarks.trainers.matmul DTYPE DEVICE SECONDS` prints "ready", waits for a line on
stdin and prints FLOP/s.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from finetune_local.cache import TREE
from finetune_local.machine import die_with_parent

_SECONDS = 5.0
_SIZE = {"cpu": 2048, "cuda": 8192}


def measure(options: argparse.Namespace, folder: Path) -> float:
    """Return the FLOP/s of all processes together."""
    dtype = "bfloat16" if options.precision == "BF16" else "float32"
    command = [sys.executable, "-m", "benchmarks.trainers.matmul", dtype]
    env = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    processes = []
    with (folder / "matmul.log").open("a") as log:
        for rank in range(options.world):
            device = f"cuda:{rank}" if options.cuda else "cpu"
            processes.append(
                subprocess.Popen(
                    [*command, device, str(_SECONDS)],
                    env=env,
                    cwd=TREE,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    preexec_fn=die_with_parent,
                )
            )
    for process in processes:
        process.stdout.readline()  # ready
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def main() -> None:
    import torch

    device = torch.device(sys.argv[2])
    size, seconds = _SIZE[device.type], float(sys.argv[3])
    matrix = torch.randn(size, size, dtype=getattr(torch, sys.argv[1]), device=device)

    def run_ten() -> float:
        """Run ten products and return their seconds."""
        started = time.monotonic()
        for _ in range(10):
            matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - started

    run_ten()
    print("ready", flush=True)
    sys.stdin.readline()
    spent, done = 0.0, 0
    while spent < seconds:
        spent += run_ten()
        done += 10
    print(2 * size**3 * done / spent)


if __name__ == "__main__":
    main()
