"""Control of Python's collector of cyclic garbage.

By default the collector scans the million objects of torch, transformers and DeepSpeed again and
again. That costs a fifth of the CPU time of a start. Later it pauses each rank at a different
moment, and all other ranks wait for it. Here all ranks collect after the same steps.
Method: torchtitan's GarbageCollection.
"""

import gc

_INTERVAL = 50  # steps


def hold() -> None:
    """Disable automatic collections."""
    gc.disable()


def collect_rarely() -> None:
    """Make automatic collections rare. For processes that no other process waits for."""
    gc.set_threshold(50_000)


def freeze() -> None:
    """Exclude all objects that exist now from later collections."""
    gc.collect()
    gc.freeze()


def after(step: int) -> None:
    """Collect if `step` is a multiple of 50."""
    if step % _INTERVAL == 0:
        gc.collect()
