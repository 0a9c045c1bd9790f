"""How many examples repeat an earlier one, from their digests on disk, in bounded memory."""

from pathlib import Path

import numpy as np

_AT_ONCE = 1 << 20  # digests


def count(path: Path) -> int:
    """Of a file of uint64 digests: how many are copies.

    Digests are spread evenly, so their remainders make buckets of about the same size; each bucket
    is counted on its own.
    """
    total = path.stat().st_size // 8
    buckets = total // _AT_ONCE + 1
    unique = 0
    for bucket in range(buckets):
        found = []
        with path.open("rb") as file:
            while len(digests := np.fromfile(file, dtype="<u8", count=_AT_ONCE)):
                found.append(digests[digests % np.uint64(buckets) == bucket])
        unique += len(np.unique(np.concatenate(found))) if found else 0
    return total - unique
