"""How work says that it moves: the only thing computing code knows of supervision."""

from typing import Protocol

from finetune_api.progress import CheckpointRecord, Evaluation, Progress, Stage, StepLedger


class Reporter(Protocol):
    """Told by whoever works, heard by the supervisor."""

    def stage(self, stage: Stage) -> None:
        """A new stage began."""

    def advance(self, amount: int = 1) -> None:
        """So many units of work (rows, bytes, tensors, steps) were completed."""

    def training(
        self,
        progress: Progress | None = None,
        evaluation: Evaluation | None = None,
        ledger: StepLedger | None = None,
        checkpoints: list[CheckpointRecord] | None = None,
    ) -> None:
        """New facts; None means unchanged."""


class SilentReporter:
    """For library use and tests."""

    def stage(self, stage: Stage) -> None:
        """Say nothing."""

    def advance(self, amount: int = 1) -> None:
        """Say nothing."""

    def training(
        self,
        progress: Progress | None = None,
        evaluation: Evaluation | None = None,
        ledger: StepLedger | None = None,
        checkpoints: list[CheckpointRecord] | None = None,
    ) -> None:
        """Say nothing."""
