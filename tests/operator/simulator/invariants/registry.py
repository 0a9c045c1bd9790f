"""The list of invariants, by the moment at which each is checked."""

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
    "waiting",  # the faults have stopped, and what they did is not repaired yet
    "stuck",  # only lost nodes keep the job from its end
    "run out",  # the job had time to come to its end
    "at the end",
)


class BrokenError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, sentence: str, problem: str) -> None:
        super().__init__(f"{sentence}: {problem}")
        self.sentence = sentence


@dataclass(frozen=True)
class Invariant:
    """An invariant that is checked at a moment."""

    sentence: str
    moment: str
    check: Check


BY_MOMENT: dict[str, list[Invariant]] = defaultdict(list)


def invariant(moment: str, sentence: str) -> Callable[[Check], Check]:
    """Register a check."""
    assert moment in MOMENTS

    def add(check: Check) -> Check:
        BY_MOMENT[moment].append(Invariant(sentence, moment, check))
        return check

    return add
