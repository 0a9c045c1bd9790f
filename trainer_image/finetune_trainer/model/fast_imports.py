"""Imports without what they would import and nobody here uses: seconds of every start."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """A package is as if it were not installed, unless it has been imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def model_classes() -> None:
    """Import what all models of transformers are made of, without scipy.

    Losses of object detection would import it: a tenth of the whole.
    """
    from transformers import utils

    original = utils.is_scipy_available
    utils.is_scipy_available = lambda: False
    try:
        import transformers.modeling_utils  # noqa: F401
    finally:
        utils.is_scipy_available = original
