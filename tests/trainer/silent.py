"""A Reporter for work that a test calls in its own process."""

from finetune_api.progress import CheckpointRecord, Evaluation, Progress, Stage, StepLedger


class SilentReporter:
    """A Reporter that discards everything."""

    def stage(self, stage: Stage) -> None:
        """Do nothing."""

    def advance(self, amount: int = 1) -> None:
        """Do nothing."""

    def training(
        self,
        progress: Progress | None = None,
        evaluation: Evaluation | None = None,
        ledger: StepLedger | None = None,
        checkpoints: list[CheckpointRecord] | None = None,
    ) -> None:
        """Do nothing."""
