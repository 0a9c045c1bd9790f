"""Imports DeepSpeed without the packages that are not used here, to save seconds at every start."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from finetune_trainer.model.fast_imports import without


def load() -> Any:
    """Import DeepSpeed, for CPU or GPU, and return the package."""
    # Its import detects the accelerator, and logs a warning if it finds the CPU only.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # Its autotuner would import mlflow, which only a tracker needs.
    with without("mlflow"), _without_compiling():
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.zero.muon.muon_optimizer  # or the first engine will
    # An operator for inference. On CPU it is compiled at the first start, which takes minutes, and
    # a killed build leaves a lock file that blocks all later ones.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _without_compiling() -> Iterator[None]:
    """Make torch.compile return functions unchanged.

    DeepSpeed decorates functions of optimizers that are not used here with torch.compile, which
    would import torch's compiler.
    """
    original = torch.compile

    def unchanged(model: Any = None, **_: Any) -> Any:
        if model is not None:
            return model

        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            return function

        return decorator

    torch.compile = unchanged
    try:
        yield
    finally:
        torch.compile = original
