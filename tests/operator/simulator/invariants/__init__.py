"""What must stay true in every history. Each is a sentence and a check.

A check returns what is wrong, or None. Those of a write see the object before and after it; the
server's state is the one after it.
"""

from tests.operator.simulator.invariants import endings, pods, resting, statuses
from tests.operator.simulator.invariants.registry import BY_MOMENT, BrokenError, Invariant

__all__ = ["BY_MOMENT", "BrokenError", "Invariant", "endings", "pods", "resting", "statuses"]
