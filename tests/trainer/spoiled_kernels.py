"""Registries of comparisons with kernels that misbehave, and a rank that agrees on kernels."""

import os
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from finetune_trainer.model import attention, kernels
from finetune_trainer.model.self_check import Check


def _inputs(device: torch.device) -> list[torch.Tensor]:
    return [torch.randn(8, 16, device=device)]


def _raise(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel image is available\nfor this device")


def _with_a_wrong_gradient(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.square() + 0.1 * (tensor - tensor.detach())


def _kill(_: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _hang(_: torch.Tensor) -> torch.Tensor:
    time.sleep(600)
    raise AssertionError


def _leak(*parts: torch.Tensor) -> Any:
    bounds = torch.tensor([0, 38, 200, 256], dtype=torch.int32)
    output, _ = attention.segments_attention(
        torch.nn.Module(), *parts, None, cu_seq_lens_q=bounds, max_length_q=162
    )
    return output


def every_kind(folder: str, dtype: str, failed: set[str]) -> list[Check]:
    """Return the trainer's comparisons, and some of which each fails in its own way.

    The trainer's attention ignores a boundary of documents.
    """

    def last(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.square() if len(failed) == 7 else tensor

    functions = {
        "right": torch.square,
        "wrong": lambda tensor: tensor.square() * 1.1,
        "wrong gradient": _with_a_wrong_gradient,
        "not a number": lambda tensor: tensor.square() * float("nan"),
        "raising": _raise,
        "killed": _kill,
        "hanging": _hang,
        "last": last,
    }
    own = [
        replace(check, fused=_leak) if check.name == kernels.ATTENTION else check
        for check in kernels.checks(folder, dtype, failed)
    ]
    return own + [Check(name, f, torch.square, _inputs, 0.03) for name, f in functions.items()]


def unusable(_folder: str, _dtype: str, _failed: set[str]) -> list[Check]:
    """Fail before the first comparison."""
    raise ImportError("No module named triton")


def main() -> None:
    """Agree on kernels as one of two ranks. The second one's attention has failed."""
    from finetune_trainer.training import kernel_choice, rendezvous
    from finetune_trainer.training.place import Place

    place = Place.from_environment()
    rendezvous.join(place, timedelta(minutes=1))
    results = {kernels.ATTENTION: None, kernels.HEAD: None}
    if place.rank == 1:
        results[kernels.ATTENTION] = "it was wrong"
    mine = kernels.Kernels.passed(results)
    agreed = kernel_choice.agree(mine, place, dist.new_group(backend="gloo"))
    print(sorted(agreed.used), agreed.problem, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
    sys.exit()
