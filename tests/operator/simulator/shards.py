"""Many histories on several cores.

N histories are cut into shards of a fixed size, each with a seed that is derived from the given
one, so that the same seed gives the same histories on every machine.
"""

import logging
import multiprocessing
from collections.abc import Iterator

from tests.operator.simulator.search import FoundError, search

_SIZE = 250


def shard(number_and_size: tuple[int, int]) -> tuple[int, str]:
    """Run one shard; return the number of histories and the problem, or "" if there is none."""
    logging.disable(logging.CRITICAL)
    number, size = number_and_size
    try:
        search(number, size)
    except FoundError as error:
        return size, f"seed {number}: {error}"
    return size, ""


def simulate(histories: int, seed: int, processes: int) -> Iterator[tuple[int, str]]:
    """Yield for each shard the number of histories and the smallest one that failed, or ""."""
    sizes = [_SIZE] * (histories // _SIZE) + ([histories % _SIZE] if histories % _SIZE else [])
    shards = [(seed * 1_000_000 + number, size) for number, size in enumerate(sizes)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        yield from pool.imap_unordered(shard, shards)
