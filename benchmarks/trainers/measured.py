"""What is known of a contender's run, and what follows from it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One optimizer step, all processes together."""

    seconds: float
    conversations: int
    tokens: int
    """Of conversations."""
    trained: int
    """Of them, those that the loss counts."""
    computed: int
    """What went through the model: tokens and padding."""


@dataclass(frozen=True)
class Measured:
    """A run of --steps steps with one save."""

    name: str
    steps: list[Step]
    warm_up: int
    saved: int
    """Steps before the save; those between warm-up and it are counted."""
    stall: float
    """Seconds from the end of the step before the save until training went on."""
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
    """CPU seconds of everything else on the machine, meanwhile."""

    @property
    def counted(self) -> list[Step]:
        """Steps that throughput is computed from."""
        return self.steps[self.warm_up : self.saved]

    def rate(self, of: Callable[[Step], float]) -> float:
        """Per second."""
        return sum(map(of, self.counted)) / self.seconds

    @property
    def seconds(self) -> float:
        """Of the counted steps."""
        return sum(step.seconds for step in self.counted)

    @property
    def slowed(self) -> float:
        """Seconds that the steps after the save took longer than their tokens explain."""
        later = self.steps[self.saved :]
        expected = sum(step.computed for step in later) / self.rate(lambda step: step.computed)
        return sum(step.seconds for step in later) - expected
