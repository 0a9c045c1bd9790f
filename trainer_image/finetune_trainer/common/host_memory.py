"""Recognizes that the host, and not a device, has no memory left, and says what can be changed."""

import errno
import traceback

from finetune_trainer.common import machine

_TEXTS = (
    "DefaultCPUAllocator",  # torch's allocator
    "std::bad_alloc",
    "Cannot allocate memory",  # ENOMEM of any call, in the text of a library
    "cudaHostAlloc",  # pinned memory
    "cudaHostRegister",
    "CachingHostAllocator",
)
_GIGABYTE = 1e9


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error means that host memory could not be allocated.

    CUDA's error for pinned memory is that for device memory: there, the call that failed decides.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    return names_host_memory(str(error)) or _was_pinning(error)


def names_host_memory(text: str) -> bool:
    """Return whether the text of an error names a failed allocation of host memory."""
    return any(part in text for part in _TEXTS)


def message(cause: str, offload: str = "None") -> str:
    """Return a message with the limit and what can be changed. `offload` is that of the plan."""
    limit = machine.memory_limit()
    found = (
        "this container has no memory limit, so its node has no memory left"
        if limit is None
        else f"the memory limit of this container is {limit / _GIGABYTE:.1f} GB"
    )
    text = (
        f"out of host memory ({cause[:160]}); {found}; raise the memory of the container "
        "trainer in workers.template"
    )
    if offload != "None":
        text += f", or keep less there: deepspeed.offload is {offload}"
    return text


def cause(error: BaseException) -> str:
    """Return the line of an error that names the allocation, or else its first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next(filter(names_host_memory, lines), lines[0])


def _was_pinning(error: BaseException) -> bool:
    """Return whether CUDA had no memory for pinned host memory."""
    if "out of memory" not in str(error):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "pin_memory" in f"{frames[-1].name} {frames[-1].line}"
