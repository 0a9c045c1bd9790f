"""The invariants, which must hold in every history. Each is a sentence and a check.

A check returns a description of the problem, or None. Checks of a write get the object before and
after it, and the store is in the state after it.
"""

from tests.operator.simulator.invariants import endings, exports, pods, resting, starts, statuses
from tests.operator.simulator.invariants.registry import BY_MOMENT, BrokenError, Invariant

__all__ = [
    "BY_MOMENT",
    "BrokenError",
    "Invariant",
    "endings",
    "exports",
    "pods",
    "resting",
    "starts",
    "statuses",
]
