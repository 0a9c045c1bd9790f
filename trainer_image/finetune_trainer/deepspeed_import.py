"""Importing DeepSpeed without what it imports and nobody here uses: seconds of every start."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def load() -> Any:
    """The package; ready for CPU and GPU."""
    # Its import looks for an accelerator, and warns when it has to settle for the CPU.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with _without("mlflow"), _compiling_nothing():
        import deepspeed
        import deepspeed.ops
    # Compiled at start on CPU (minutes, and a killed build locks all later ones), for inference.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _without(name: str) -> Iterator[None]:
    """The autotuner would import it: 1.5 s of CPU where it is installed, a tracker's business."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


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
