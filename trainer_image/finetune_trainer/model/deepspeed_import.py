"""Importing DeepSpeed without what it imports and nobody here uses: seconds of every start."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from finetune_trainer.model.fast_imports import without


def load() -> Any:
    """The package; ready for CPU and GPU."""
    # Its import looks for an accelerator, and warns when it has to settle for the CPU.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # The autotuner would import mlflow, a tracker's business.
    with without("mlflow"), _compiling_nothing():
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.zero.muon.muon_optimizer  # else it is when an engine is made
    # Compiled at start on CPU (minutes, and a killed build locks all later ones), for inference.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _compiling_nothing() -> Iterator[None]:
    """Functions of optimizers that are not used here are compiled at import, which imports
    torch's compiler; uncompiled they are the same."""
    original = torch.compile

    def leave(model: Any = None, **_: Any) -> Any:
        if model is not None:
            return model

        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            return function

        return decorator

    torch.compile = leave
    try:
        yield
    finally:
        torch.compile = original
