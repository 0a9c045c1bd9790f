"""The measurements of a contender's run, and figures that are computed from them."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One optimizer step, summed over all processes."""

    seconds: float
    conversations: int
    tokens: int
    """Tokens of conversations, without padding."""
    trained: int
    """Tokens that carry loss."""
    computed: int
    """Tokens that the model computed, including padding."""


@dataclass(frozen=True)
class Measured:
    """A run of --steps steps with one save."""

    name: str
    steps: list[Step]
    warm_up: int
    saved: int
    """Number of steps before the save; those after the warm-up are counted."""
    stall: float
    """Seconds from the end of the step before the save until training continued."""
    first_step: float
    """Seconds from the start of the processes to the end of the first step."""
    cpu: float
    """CPU seconds of all processes, over `cpu_steps`."""
    cpu_steps: slice
    loss: float
    """Mean of the training loss over the run."""
    peak: int
    """Resident bytes of all processes together."""
    device_peak: int | None
    others: float
    """CPU seconds of all other processes of the machine during the run."""

    @property
    def counted(self) -> list[Step]:
        """Steps from which throughput is computed."""
        return self.steps[self.warm_up : self.saved]

    def rate(self, of: Callable[[Step], float]) -> float:
        """Return the sum of a figure over the counted steps, per second."""
        return sum(map(of, self.counted)) / self.seconds

    @property
    def seconds(self) -> float:
        """Seconds of the counted steps."""
        return sum(step.seconds for step in self.counted)

    @property
    def slowed(self) -> float:
        """Seconds by which the steps after the save took longer than expected by their tokens."""
        later = self.steps[self.saved :]
        expected = sum(step.computed for step in later) / self.rate(lambda step: step.computed)
        return sum(step.seconds for step in later) - expected
