"""The list of invariants, by the moment at which each is looked at."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.operator.simulator.world import World

Check = Callable[["World", Any], str | None]
MOMENTS = (
    "status written",
    "pod created",
    "pod deleted",
    "at rest",
    "waiting",  # faults have ceased, the world is as it was
    "stuck",  # everything was done but for lost nodes, and they did not come back
    "settled",  # the same, and the job needs no node back
    "at the end",
)


class BrokenError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, sentence: str, problem: str) -> None:
        super().__init__(f"{sentence}: {problem}")
        self.sentence = sentence


@dataclass(frozen=True)
class Invariant:
    """`moment` is when it is looked at."""

    sentence: str
    moment: str
    check: Check


BY_MOMENT: dict[str, list[Invariant]] = defaultdict(list)


def always(moment: str, sentence: str) -> Callable[[Check], Check]:
    """Add a check to the list."""
    assert moment in MOMENTS

    def add(check: Check) -> Check:
        BY_MOMENT[moment].append(Invariant(sentence, moment, check))
        return check

    return add
