"""A Reporter for work that a test calls in its own process."""

from finetune_trainer.common.reporter import Reporter


class SilentReporter(Reporter):
    """A Reporter that discards everything: the methods of the protocol have empty bodies."""
