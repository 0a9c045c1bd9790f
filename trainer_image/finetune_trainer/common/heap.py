"""Returns memory that malloc keeps, after a phase that needed more than the following ones."""

import ctypes

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only


def trim() -> None:
    """Return all free pages of malloc's heap to the system."""
    if _trim is not None:
        _trim(0)
