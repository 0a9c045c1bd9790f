"""Rank 0's care for what lies on storage: marks, retention, and what the status shows."""

import logging
from pathlib import Path

from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.write import Owner
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps the last checkpoints, the best one and the newest verified one.

    And the newest one of before, while the run may be diverging: were it superseded by those that
    are condemned in the end, nothing would be left to begin with.
    """

    def __init__(self, paths: RunPaths, owner: Owner, keep_last: int, report: Reporter) -> None:
        self._paths, self._owner, self._keep_last = paths, owner, keep_last
        self._report = report
        self.last_good: int | None = None
        """While the run may be diverging: the step whose weights are beyond doubt."""

    def settle(self, folder: Path) -> None:
        """A checkpoint was read back: mark it, then remove what it supersedes.

        TrainerError 79 when fenced. A storage error leaves more behind than is needed, no less.
        """
        fence.check(self._paths, self._owner.epoch, self._owner.attempt)
        try:
            store.mark_verified(folder)
            epoch = self._owner.epoch
            for old in store.superseded(self._paths, self._keep_last, epoch, self.last_good):
                store.remove(old)
        except OSError as error:
            _log.error("old checkpoints could not be removed (%s); training goes on", error)
        self.tell()

    def condemn(self, last_good: int) -> None:
        """The next attempt must begin before the weights that made the first bad step."""
        fence.check(self._paths, self._owner.epoch, self._owner.attempt)
        store.condemn(self._paths, last_good)
        self.tell()

    def tell(self) -> None:
        """Report what there is."""
        self._report.training(checkpoints=store.records(self._paths))
