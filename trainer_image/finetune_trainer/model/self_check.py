"""Compares fused kernels with plain operations on the user's own device, before they are used.

The comparison runs in a child process: a kernel that hangs, crashes, or leaves the device in a
state in which nothing works any more ends the child, not the rank. Whatever differs, fails or does
not finish is not used. So a kernel that misbehaves on a user's GPU costs speed, never a model.
"""

import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.common.errors import one_line

Function = Callable[..., Any]  # takes tensors, and returns a tensor or several
EVERYTHING = "self-check"
"""The name under which a child is reported that ended before its first comparison."""
_SECONDS = 120.0  # for one comparison, with the compilation of its kernels
_START_SECONDS = 300.0  # for the imports, on a busy host
_POLL = 0.2  # s


@dataclass(frozen=True)
class Check:
    """One comparison. Both functions take the same inputs."""

    name: str
    fused: Function
    plain: Function
    inputs: Callable[[torch.device], list[torch.Tensor]]
    tolerance: float
    """Largest difference of a row (the last dimension), relative to the size of such rows."""


def compare(check: Check, device: torch.device) -> str | None:
    """Return how the fused path differs from the plain one in outputs and gradients, or None."""
    inputs = check.inputs(device)
    expected = _evaluate(check.plain, inputs)
    found = _evaluate(check.fused, inputs)
    for (name, value), (_, reference) in zip(found, expected, strict=True):
        error = difference(value, reference)
        if not error <= check.tolerance:  # also if it is not a number
            return (
                f"the {name} differs by {error:.2g} from that of plain operations (at most "
                f"{check.tolerance:g} is allowed)"
            )
    return None


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error of a row, relative to its size and the mean size of all rows."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    columns = expected.shape[-1] if expected.ndim else 1
    a, b = (tensor.float().reshape(-1, columns) for tensor in (found, expected))
    sizes = b.norm(dim=1)
    errors = (a - b).norm(dim=1) / (sizes + sizes.square().mean().sqrt()).clamp_min(1e-30)
    return float(errors.max())


def _evaluate(function: Function, inputs: list[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Return the outputs of a function and the gradients of its inputs, by name."""
    leaves = [tensor.detach().clone() for tensor in inputs]
    for leaf in leaves:
        leaf.requires_grad_(leaf.is_floating_point())
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = [(f"output {number}", output.detach()) for number, output in enumerate(outputs, 1)]
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(())
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator).to(output.device)
        if output.requires_grad:
            total = total.to(output.device) + (output.float() * weights).sum()
    if not total.requires_grad:
        return found
    total.backward()
    gradients = [
        (f"gradient of input {number}", leaf.grad.detach())
        for number, leaf in enumerate(leaves, 1)
        if leaf.grad is not None
    ]
    return found + gradients


@dataclass(frozen=True)
class Request:
    """What the child process compares."""

    registry: str
    """`module:function` that returns the checks, from `model`, `dtype` and a set of failed ones."""
    model: str
    """The folder of the model."""
    dtype: str
    """Name of the dtype of its weights, such as bfloat16."""
    device: str


def run(
    request: Request, advance: Callable[[], None] = lambda: None, seconds: float = _SECONDS
) -> dict[str, str | None]:
    """Run all checks in child processes. Returns name -> problem, or None where both paths agree.

    A child that ends or hangs in one check is replaced by another one for the checks after it.
    """
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        while True:
            end = _run_child(request, found, results, advance, seconds)
            begun, before = None, len(found)
            for line in map(json.loads, results.read_text().splitlines()):
                begun = None if "problem" in line else line["name"]
                if begun is None:
                    found[line["name"]] = line["problem"]
            if end is None:
                return found
            if begun is not None:
                found[begun] = end
            elif len(found) == before:
                return found | {EVERYTHING: end}


def _run_child(
    request: Request,
    found: dict[str, str | None],
    results: Path,
    advance: Callable[[], None],
    seconds: float,
) -> str | None:
    """Run one child until it ends. Returns None if it finished, or how it failed."""
    results.write_text("")
    arguments = [json.dumps(vars(request)), json.dumps(found), str(results)]
    command = [sys.executable, "-m", __name__, *arguments]
    child = subprocess.Popen(command, stdout=sys.stderr)
    size, changed = 0, time.monotonic()
    try:
        while (code := child.poll()) is None:
            advance()
            if results.stat().st_size != size:
                size, changed = results.stat().st_size, time.monotonic()
            elif time.monotonic() - changed > (limit := seconds if size else _START_SECONDS):
                return f"it did not finish within {limit:.0f} s"
            time.sleep(_POLL)
    finally:
        child.kill()
        child.wait()
    if code:
        return f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
    return None


def main() -> None:
    """Run the checks that are not done yet, and write a line before and after each of them."""
    request, done = Request(**json.loads(sys.argv[1])), json.loads(sys.argv[2])
    device = torch.device(request.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches kernels on the current device
    failed = {name for name, problem in done.items() if problem}
    module, _, function = request.registry.partition(":")
    registry = getattr(importlib.import_module(module), function)
    with Path(sys.argv[3]).open("a", buffering=1) as file:
        for check in registry(request.model, request.dtype, failed):
            if check.name in done:
                continue
            file.write(json.dumps({"name": check.name}) + "\n")
            problem = _problem(check, device)
            file.write(json.dumps({"name": check.name, "problem": problem}) + "\n")
            if problem:
                failed.add(check.name)
                if not _works(device):
                    os._exit(1)  # the checks that are left need another process


def _problem(check: Check, device: torch.device) -> str | None:
    try:
        return compare(check, device)
    except Exception as error:  # kernels and their compilers raise exceptions of any type
        return f"{type(error).__name__}: {one_line(error)}"[:300]


def _works(device: torch.device) -> bool:
    """Return whether the device still computes. After some errors of CUDA it never does again."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2.0
    except RuntimeError:
        return False


if __name__ == "__main__":
    main()
