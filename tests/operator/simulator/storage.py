"""What gangs write: fences, checkpoints, the finished model. One folder for each job uid."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """A checkpoint or the model folder, and which gang published it under which fence."""

    step: int
    epoch: int
    attempt: int
    final: bool = False


@dataclass
class Run:
    """Storage of one job."""

    fences: list[int] = field(default_factory=list)  # attempt that claimed epoch 1, 2, ...
    published: list[Published] = field(default_factory=list)
    highest_step: int = 0  # that any attempt finished
    records: dict[int, tuple[str, float, float, int]] = field(default_factory=dict)

    def claim(self, attempt: int) -> int | None:
        """The next epoch; None when a newer attempt has been here (exit 79)."""
        if self.fences and self.fences[-1] > attempt:
            return None
        self.fences.append(attempt)
        return len(self.fences)

    @property
    def checkpoint(self) -> int:
        """Step of the newest checkpoint, 0 without one."""
        return max((p.step for p in self.published), default=0)

    def publish(self, step: int, epoch: int, attempt: int, *, final: bool = False) -> bool:
        """False when a larger epoch exists: the process is fenced."""
        if epoch != len(self.fences):
            return False
        self.published.append(Published(step, epoch, attempt, final))
        return True
