"""Compares AdamW of torch and of DeepSpeed in host memory, where offloaded weights are updated.

DeepSpeed first compiles its version, which takes a minute and needs a C++ compiler. See ADR 18.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

os.environ["DS_ACCELERATOR"] = "cpu"
_STEPS = 7
_OPTIONS = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MakeOptimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def measure(make: MakeOptimizer, count: int) -> tuple[float, torch.Tensor]:
    """Return the median seconds of a step and the final weights."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(count) * 0.02)
    weights.grad = torch.randn(count) * 1e-3
    optimizer = make([weights])
    optimizer.step()  # the first step allocates the state
    times = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times), weights.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parameters", type=int, default=50_000_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    makes: dict[str, MakeOptimizer] = {
        "DeepSpeedCPUAdam": lambda p: DeepSpeedCPUAdam(p, adamw_mode=True, **_OPTIONS),
        "torch AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True, **_OPTIONS),
        "torch AdamW": lambda p: torch.optim.AdamW(p, **_OPTIONS),
    }
    found = {name: measure(make, options.parameters) for name, make in makes.items()}
    _, reference = found["torch AdamW"]
    work = f"{options.parameters:,} fp32 parameters, {options.threads} threads"
    print(f"{work}, median of {_STEPS} steps")
    for name, (seconds, weights) in found.items():
        difference = (weights - reference).abs().max().item()
        print(f"{name:20} {1e3 * seconds:7.1f} ms, differs from plain AdamW by {difference:.1e}")


if __name__ == "__main__":
    main()
