"""What the exit code of a trainer container means. The numbers follow sysexits.h where it has one.

Any trainer image may use these codes. The termination message gives the reason; without one (a
container that was killed, or an image that writes none) the operator uses this table.
"""

from dataclasses import dataclass
from enum import IntEnum

from finetune_api import reasons


class ExitCode(IntEnum):
    """Exit codes of the container `trainer`."""

    DONE = 0
    BAD_CONFIGURATION = 64
    BAD_DATA = 65
    INPUT_MISSING = 66
    STORAGE_IN_USE = 69
    STORAGE_NOT_WRITABLE = 73
    STOPPED = 75
    NOT_PERMITTED = 77
    ENVIRONMENT_UNUSABLE = 78
    FENCED = 79
    DIVERGED = 86
    OUT_OF_MEMORY = 87
    PEER_LOST = 88
    HANG = 89


@dataclass(frozen=True)
class Meaning:
    """The reason that an exit code stands for, and what follows from it."""

    reason: str
    permanent: bool = False  # another attempt would end the same way
    permanent_in_prepare: bool = False
    consequence: bool = False  # follows from the failure of another pod and never causes it
    waits: bool = False  # no failure: another attempt succeeds once another job has ended


MEANINGS: dict[int, Meaning] = {
    ExitCode.DONE: Meaning(reasons.COMPLETED),
    ExitCode.BAD_CONFIGURATION: Meaning(reasons.BAD_CONFIGURATION, permanent=True),
    ExitCode.BAD_DATA: Meaning(reasons.BAD_DATA, permanent=True),
    ExitCode.INPUT_MISSING: Meaning(reasons.INPUT_MISSING, permanent=True),
    ExitCode.STORAGE_IN_USE: Meaning(reasons.STORAGE_IN_USE, waits=True),
    ExitCode.STORAGE_NOT_WRITABLE: Meaning(reasons.STORAGE_NOT_WRITABLE, permanent_in_prepare=True),
    ExitCode.STOPPED: Meaning(reasons.STOPPED),
    ExitCode.NOT_PERMITTED: Meaning(reasons.NOT_PERMITTED, permanent=True),
    ExitCode.ENVIRONMENT_UNUSABLE: Meaning(reasons.ENVIRONMENT_UNUSABLE),
    ExitCode.FENCED: Meaning(reasons.FENCED, consequence=True),
    ExitCode.DIVERGED: Meaning(reasons.DIVERGED),
    ExitCode.OUT_OF_MEMORY: Meaning(reasons.OUT_OF_MEMORY),
    ExitCode.PEER_LOST: Meaning(reasons.PEER_LOST, consequence=True),
    ExitCode.HANG: Meaning(reasons.HANG),
}


def meaning(code: int) -> Meaning:
    """Return the meaning of an exit code. A code that is not in the table is a crash."""
    return MEANINGS.get(code, Meaning(reasons.CRASHED))


def is_permanent(code: int, *, prepare: bool) -> bool:
    """Return whether another attempt would end the same way."""
    found = meaning(code)
    return found.permanent or (prepare and found.permanent_in_prepare)
