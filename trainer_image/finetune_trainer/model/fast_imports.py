"""Imports libraries without packages that are not used here, to save seconds at every start."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
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
