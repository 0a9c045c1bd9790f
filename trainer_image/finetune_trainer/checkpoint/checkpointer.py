"""Checkpoints as the training loop uses them: resume, save, wait for a save, mark as diverged."""

import logging
from collections.abc import Callable

from finetune_api.exit_codes import ExitCode
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import resume
from finetune_trainer.checkpoint.retention import Retention
from finetune_trainer.checkpoint.saver import Saver, SaveResult
from finetune_trainer.checkpoint.write import Position
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Ranks

_log = logging.getLogger(__name__)
PROBLEM_LENGTH = 512
"""The most characters that Progress.checkpoint_problem can have."""


class Checkpointer:
    """The checkpoints of one run, on one rank. All ranks call the same methods at the same steps.

    `saver` and `retention` are used directly where nothing needs to be added to them.
    """

    def __init__(
        self, engine: Engine, saver: Saver, retention: Retention, ranks: Ranks, report: Reporter
    ) -> None:
        self._engine, self._ranks, self._report = engine, ranks, report
        self.saver, self.retention = saver, retention
        self._saved_step = -1
        self.problem: str | None = None
        """Why the newest save failed, or None if it succeeded."""

    @property
    def saved_step(self) -> int:
        """Step of the newest published checkpoint; 0 if none exists."""
        return max(0, self._saved_step, self.saver.published_step or 0)

    def resume(self, highest_step: int) -> Manifest | None:
        """Load the newest valid checkpoint; collective.

        Returns its manifest, or None if no checkpoint can be used. `highest_step` is the highest
        step that any earlier attempt has finished.
        """
        storage = self.retention.storage
        found = resume.newest_valid(
            storage.paths, storage.run_digest, self._ranks.control, self._report.advance
        )
        if self._ranks.rank == 0:
            self.retention.report()
        if found is None:
            resume.assert_consistent(self._engine)
            if highest_step and self._ranks.rank == 0:
                _log.warning(
                    "no checkpoint of this run can be used, although step %d was reached: training "
                    "begins again at the first step",
                    highest_step,
                )
            return None
        folder, manifest = found
        resume.load(self._engine, folder, manifest, self._report.advance)
        self._saved_step = manifest.step
        self.saver.expect_duration_of(manifest)
        _log.info("resumed from checkpoint %s", folder.name)
        return manifest

    def all_ranks_write_in_background(self) -> bool:
        """Return whether training continues while every rank writes; collective.

        Otherwise each rank waits for its own write, however long its storage takes.
        """
        return not self._ranks.any(not self.saver.writes_in_background)

    def begin(self, position: Position, *, known_finite: bool) -> None:
        """Begin a checkpoint. `known_finite`: the loss of these weights is known to be finite."""
        is_first = self._saved_step < 0
        self._report.stage("Checkpointing")
        self.saver.begin(position, known_finite=known_finite)
        if is_first:
            resume.assert_consistent(self._engine)
        self._report.stage("Training")

    def update(self, finished: int, failed: int) -> None:
        """Process what the consensus shows about the current save."""
        self._process(self.saver.update(finished, failed))

    def drain(
        self, *, must_succeed: bool = False, is_too_late: Callable[[], bool] | None = None
    ) -> None:
        """Wait until the current save has ended, or until it is too late on any rank; collective.

        Raises TrainerError (73) if the save failed and `must_succeed` is set.
        """
        if self.saver.is_idle:
            return
        self._report.stage("Checkpointing")
        self._process(self.saver.drain(is_too_late), must_succeed=must_succeed)
        self._report.stage("Training")

    def mark_diverged(self, last_good: int) -> None:
        """Mark all checkpoints after a step as diverged, on rank 0; all ranks wait for it.

        Once a rank has left, the others have seconds before the next attempt begins.
        """
        self._report.stage("Checkpointing")
        try:
            if self._ranks.rank == 0:
                self.saver.wait_for_marks()
                self.retention.mark_diverged(last_good)
        finally:
            self._ranks.barrier()

    def _process(self, result: SaveResult | None, *, must_succeed: bool = False) -> None:
        if result is None:
            return
        if result.problem:
            problem = f"the checkpoint of step {result.step} could not be saved ({result.problem})"
            self.problem = problem[:PROBLEM_LENGTH]
            if must_succeed:
                raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, problem)
            # The older checkpoints are still there, and the next save may succeed.
            _log.error("%s; training continues", problem)
            return
        self.problem = None
        self._saved_step = max(self._saved_step, result.step)
        if self._ranks.rank == 0:
            stalled = self.saver.stalled
            _log.info("saved a checkpoint of step %d (stalled %.3f s)", result.step, stalled)
