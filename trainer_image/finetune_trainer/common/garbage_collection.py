"""Python's collector of cyclic garbage, at moments that all ranks share.

Left to itself it walks over the million objects of torch, transformers and DeepSpeed again and
again: a fifth of the CPU time of a start, and later a pause at another moment in each rank, for
which all the others wait. Method: torchtitan's GarbageCollection.
"""

import gc

_STEPS = 50


def hold() -> None:
    """Collect nothing until told."""
    gc.disable()


def seldom() -> None:
    """For processes that work alone."""
    gc.set_threshold(50_000)


def settle() -> None:
    """What exists now stays to the end, and is never walked over again."""
    gc.collect()
    gc.freeze()


def after(step: int) -> None:
    """Collect after every 50th step."""
    if step % _STEPS == 0:
        gc.collect()
