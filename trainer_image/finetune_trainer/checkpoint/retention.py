"""Which checkpoints stay on storage: rank 0 marks, deletes and reports them."""

import logging
from pathlib import Path

from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.common.reporter import Reporter

_log = logging.getLogger(__name__)


class Retention:
    """Keeps the newest checkpoints, the best one and the newest verified one.

    While divergence is suspected, it also keeps the newest checkpoint from before it. Otherwise all
    checkpoints that are left might be marked as diverged, with none to resume from.
    """

    def __init__(self, storage: RunStorage, keep_last: int, report: Reporter) -> None:
        self.storage, self._keep_last, self._report_to = storage, keep_last, report
        self.last_good: int | None = None
        """The newest step whose weights are certainly usable, while divergence is suspected."""

    def accept(self, folder: Path) -> None:
        """Mark a checkpoint that was read back as verified, and delete those that it supersedes.

        Raises TrainerError (79) if a newer attempt owns the storage. After a storage error, more
        checkpoints than necessary are left, never fewer.
        """
        self.storage.check_fence()
        paths, epoch = self.storage.paths, self.storage.fence_epoch
        try:
            store.mark_verified(folder)
            for deletion in store.to_delete(paths, self._keep_last, epoch, self.last_good):
                store.delete(paths, deletion)
        except OSError as error:
            _log.error("old checkpoints could not be deleted (%s); training continues", error)
        self.report()

    def mark_diverged(self, last_good: int) -> None:
        """Exclude all checkpoints after step `last_good` from being resumed from.

        Raises TrainerError (79) if a newer attempt owns the storage.
        """
        self.storage.check_fence()
        store.mark_diverged(self.storage.paths, last_good)
        self.report()

    def report(self) -> None:
        """Report all published checkpoints."""
        self._report_to.training(checkpoints=store.records(self.storage.paths))
