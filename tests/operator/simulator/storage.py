"""The storage that gangs write to: fences, checkpoints and the finished model, by job uid."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """A checkpoint or the model folder, with the attempt and the fence epoch that published it."""

    step: int
    epoch: int
    attempt: int
    final: bool = False


@dataclass
class Run:
    """The storage of one job."""

    fences: list[int] = field(default_factory=list)  # attempt that claimed epoch 1, 2, ...
    published: list[Published] = field(default_factory=list)
    highest_step: int = 0  # that any attempt finished
    records: dict[int, tuple[str, float, float, int]] = field(default_factory=dict)

    def claim(self, attempt: int) -> int | None:
        """Return the next fence epoch, or None if a newer attempt has one (exit code 79)."""
        if self.fences and self.fences[-1] > attempt:
            return None
        self.fences.append(attempt)
        return len(self.fences)

    @property
    def checkpoint(self) -> int:
        """The step of the newest checkpoint, or 0."""
        return max((p.step for p in self.published), default=0)

    def publish(self, step: int, epoch: int, attempt: int, *, final: bool = False) -> bool:
        """Publish; return False if a larger epoch exists, so that the process is fenced."""
        if epoch != len(self.fences):
            return False
        self.published.append(Published(step, epoch, attempt, final))
        return True
