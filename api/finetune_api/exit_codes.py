"""What a trainer container's exit code means; the sysexits names where they exist.

Any image can speak these. `FINETUNE` reports the reason in words; this table is what the operator
falls back to when a container left no result (killed, out of memory, foreign image).
"""

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the container `trainer`."""

    DONE = 0
    BAD_CONFIGURATION = 64
    BAD_DATA = 65
    INPUT_MISSING = 66
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
    """Reason shown to people, and whether trying again can help."""

    reason: str
    permanent: bool = False
    permanent_in_prepare: bool = False
    consequence: bool = False  # follows from another pod's failure, never its cause


MEANINGS: dict[int, Meaning] = {
    ExitCode.DONE: Meaning("Completed"),
    ExitCode.BAD_CONFIGURATION: Meaning("BadConfiguration", permanent=True),
    ExitCode.BAD_DATA: Meaning("BadData", permanent=True),
    ExitCode.INPUT_MISSING: Meaning("InputMissing", permanent=True),
    ExitCode.STORAGE_NOT_WRITABLE: Meaning("StorageNotWritable", permanent_in_prepare=True),
    ExitCode.STOPPED: Meaning("Stopped"),
    ExitCode.NOT_PERMITTED: Meaning("NotPermitted", permanent=True),
    ExitCode.ENVIRONMENT_UNUSABLE: Meaning("EnvironmentUnusable"),
    ExitCode.FENCED: Meaning("Fenced", consequence=True),
    ExitCode.DIVERGED: Meaning("Diverged"),
    ExitCode.OUT_OF_MEMORY: Meaning("OutOfMemory"),
    ExitCode.PEER_LOST: Meaning("PeerLost", consequence=True),
    ExitCode.HANG: Meaning("Hang"),
}


def meaning(code: int) -> Meaning:
    """Meaning of any exit code; one that is not in the table is a crash."""
    return MEANINGS.get(code, Meaning("Crashed"))


def is_permanent(code: int, *, prepare: bool) -> bool:
    """True when another attempt would end the same way."""
    found = meaning(code)
    return found.permanent or (prepare and found.permanent_in_prepare)
