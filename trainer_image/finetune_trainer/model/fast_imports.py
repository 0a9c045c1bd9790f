"""Imports libraries without packages that are not used here, to save seconds at every start.

This is the only module that imports DeepSpeed. Importing this module itself imports no library.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Make a package look as if it were not installed, unless it was imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def model_classes() -> None:
    """Import the base classes of transformers' models without scipy.

    Only losses of object detection need scipy; importing it takes a tenth of the time.
    """
    from transformers import utils

    original = utils.is_scipy_available
    utils.is_scipy_available = lambda: False
    try:
        import transformers.modeling_utils  # noqa: F401
    finally:
        utils.is_scipy_available = original


def load_deepspeed() -> Any:
    """Import DeepSpeed, for CPU or GPU, and return the package."""
    import torch

    # Its import detects the accelerator, and logs a warning if it finds the CPU only.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # Its autotuner would import mlflow, which only a tracker needs.
    with _without("mlflow"), _without_compiling():
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
    import torch

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
