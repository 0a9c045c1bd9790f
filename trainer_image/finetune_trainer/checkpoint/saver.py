"""Saves a checkpoint while training continues.

Saving stalls training only for the copy to host memory. The rest happens in phases, in a thread of
each rank:

    write    every rank writes its files
    publish  rank 0 writes the manifest; from here on the checkpoint exists
    verify   every rank reads back the files of a rank of another node, if there is one
    accept   rank 0 marks the checkpoint as verified and deletes those that it supersedes

Every rank adds the number of its finished phases to the consensus of a step (consensus.py). When
all ranks have finished a phase, all begin the next one at the same step. Therefore a save needs no
collectives besides those of training, and all ranks agree on the result of every save.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store, write
from finetune_trainer.checkpoint.fragments import Snapshot
from finetune_trainer.checkpoint.retention import Retention
from finetune_trainer.checkpoint.write import Position, Shard
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model.ranks import Ranks

_log = logging.getLogger(__name__)
_WRITE, _PUBLISH, _VERIFY, _ACCEPT = range(4)  # phases
_MARKING = (_PUBLISH, _ACCEPT)  # phases in which rank 0 writes a manifest or a mark
_MARGIN = 1.2
_POLL = 0.005  # s between two looks at a save while nothing but it is waited for


@dataclass(frozen=True)
class SaveResult:
    """The result of a save. Without a problem, the checkpoint is published and verified."""

    step: int
    problem: str | None


class Saver:
    """One rank's part in saving. All ranks call the same methods at the same steps."""

    def __init__(
        self,
        snapshot: Snapshot,
        retention: Retention,
        ranks: Ranks,
        advance: Callable[[], None],
    ) -> None:
        self._snapshot, self._retention = snapshot, retention
        self._storage = retention.storage
        self._ranks, self._advance = ranks, advance
        self._save: _Save | None = None
        self._target = 0
        self._finished = 0
        self._problem: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.stalled = 0.0
        """Seconds for which training waited for the newest save."""
        self._seconds: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no save is in progress."""
        return self._save is None

    @property
    def writes_in_background(self) -> bool:
        """Whether training continues on this rank while it writes."""
        return self._snapshot.is_copy

    @property
    def finished_phases(self) -> int:
        """Number of phases that this rank has finished so far, for the consensus."""
        return self._finished

    @property
    def has_failed(self) -> bool:
        """Whether the newest phase of this rank failed, for the consensus."""
        return self._problem is not None

    def expect_duration_of(self, earlier: Manifest) -> None:
        """Expect saves to take as long as an earlier one that as many ranks wrote."""
        if earlier.world_size == self._ranks.world:
            self._seconds = earlier.write_seconds

    @property
    def expected_seconds(self) -> float | None:
        """Expected seconds from the start of a save to its publication; None if unknown."""
        return None if self._seconds is None else _MARGIN * self._seconds

    @property
    def remaining_seconds(self) -> float | None:
        """Expected seconds until the current save is published; None if unknown.

        0 if no save is in progress, or if it is already published.
        """
        if self._save is None or self.published_step is not None:
            return 0.0
        expected = self.expected_seconds
        elapsed = time.monotonic() - self._save.started
        return None if expected is None else max(0.0, expected - elapsed)

    @property
    def published_step(self) -> int | None:
        """Step of the current save once all ranks know that it is published, else None."""
        save = self._save
        return save.position.step if save and save.phase > _PUBLISH else None

    def begin(self, position: Position, *, known_finite: bool) -> None:
        """Copy the state and begin to write it. No save may be in progress.

        Unless the loss of these weights is already known to be finite, the checkpoint is published
        only after `report_loss` has reported that it is.
        """
        assert self._save is None
        started = time.monotonic()
        shard = self._snapshot.take()
        folder = self._storage.checkpoint(position.step)
        self._save = _Save(position, shard, folder, started, True if known_finite else None)
        thread = self._start(self._write)
        if not self._snapshot.is_copy:
            thread.join()
        self.stalled = time.monotonic() - started

    @property
    def awaits_loss(self) -> bool:
        """Whether the current save waits for `report_loss`."""
        return self._save is not None and self._save.is_finite is None

    def report_loss(self, step: int, *, is_finite: bool) -> None:
        """Record whether the loss of the weights after a step is finite."""
        if self._save and self._save.position.step == step and self._save.is_finite is None:
            self._save.is_finite = is_finite

    def update(self, finished: int, failed: int) -> SaveResult | None:
        """Begin the next phase, or end the save, if the sums over all ranks allow it.

        Returns the result if the save has ended.
        """
        save = self._save
        if save is None or finished < self._target * self._ranks.world:
            return None
        if failed:
            return self._abandon(save)
        if save.phase == _WRITE and save.is_finite is None:
            return None
        if save.phase == _WRITE and not save.is_finite:
            self._problem = ValueError("the loss of its weights is not finite")
            return self._abandon(save)
        save.phase += 1
        phases = {_PUBLISH: self._publish, _VERIFY: self._verify, _ACCEPT: self._accept}
        if save.phase in phases:
            self._start(phases[save.phase])
            return None
        self._save = None
        return SaveResult(save.position.step, None)

    def drain(self, is_too_late: Callable[[], bool] | None) -> SaveResult | None:
        """Wait for the current save; collective. The loss of its weights must be known.

        Returns None if no save is in progress, or if it became too late on any rank.
        """
        while self._save is not None:
            too_late = is_too_late is not None and is_too_late()
            vector = torch.tensor([self._finished, int(self.has_failed), int(too_late)])
            dist.all_reduce(vector, group=self._ranks.control)
            finished, failed, late = vector.tolist()
            result = self.update(finished, failed)
            if result is not None or late:
                return result
            time.sleep(_POLL)
        return None

    def wait_for_marks(self) -> None:
        """Wait until rank 0 writes no manifest and no mark.

        Its other phases may take minutes, but they write nothing that could be resumed from, and
        the next phase begins in `update` only.
        """
        if self._thread is not None and self._save is not None and self._save.phase in _MARKING:
            self._thread.join()

    def _start(self, phase: Callable[["_Save"], None]) -> threading.Thread:
        save = self._save
        assert save is not None
        self._target += 1

        def work() -> None:
            try:
                phase(save)
            except Exception as error:  # all ranks must know of it, whatever it is
                self._problem = error
            # NB: last. The main thread reads all other fields once it has seen this one.
            self._finished += 1

        self._thread = threading.Thread(target=work, name="saver", daemon=True)
        self._thread.start()
        return self._thread

    def _write(self, save: "_Save") -> None:
        write.write(save.folder, save.shard, self._advance)

    def _publish(self, save: "_Save") -> None:
        seconds = time.monotonic() - save.started
        if self._ranks.rank == 0:
            write.publish(save.folder, self._storage, save.position, save.shard, seconds)
        self._seconds = seconds

    def _verify(self, save: "_Save") -> None:
        write.verify(save.folder, self._ranks.verified_rank, self._advance)

    def _accept(self, save: "_Save") -> None:
        if self._ranks.rank == 0:
            self._retention.accept(save.folder)

    def _abandon(self, save: "_Save") -> SaveResult:
        """Delete a checkpoint whose save failed.

        All ranks get here at the same step while no thread runs, so collectives are safe.
        """
        problem, self._problem, self._save = self._problem, None, None
        text = self._first_problem(problem)
        # The manifest goes first: a folder that is deleted only in part must not look complete.
        if self._ranks.rank == 0:
            write.withdraw(save.folder)
        dist.barrier(self._ranks.control)
        write.discard(save.folder, self._ranks.rank)
        dist.barrier(self._ranks.control)
        if self._ranks.rank == 0 and _remove_if_empty(save.folder):
            deletion = store.Deletion(save.folder, save.position.step, "incomplete")
            store.log_deleted(self._storage.paths, deletion)
        return SaveResult(save.position.step, text)

    def _first_problem(self, problem: BaseException | None) -> str:
        """Return the problem of the lowest rank that has one; collective.

        Raises TrainerError on every rank if a rank was fenced.
        """
        mine = None
        if problem is not None:
            fenced = problem if isinstance(problem, TrainerError) else None
            mine = (_describe(problem), fenced and int(fenced.code))
        gathered: list[Any] = [None] * self._ranks.world
        dist.all_gather_object(gathered, mine, group=self._ranks.control)
        problems = [(rank, *found) for rank, found in enumerate(gathered) if found is not None]
        for _, message, code in problems:
            if code is not None:
                raise TrainerError(ExitCode(code), message)
        rank, message, _ = problems[0]
        return f"worker {rank // self._ranks.local_world}, rank {rank}: {message}"


@dataclass
class _Save:
    """The save in progress."""

    position: Position
    shard: Shard
    folder: Path
    started: float  # time.monotonic()
    is_finite: bool | None  # the loss of its weights; None if it is not known yet
    phase: int = _WRITE


def _describe(problem: BaseException) -> str:
    """Return what went wrong in one line; for an error of the system with its name and number."""
    if isinstance(problem, OSError) and problem.errno is not None:
        name = errno.errorcode.get(problem.errno, "unknown")
        file = f", {Path(str(problem.filename)).name}" if problem.filename else ""
        return f"{problem.strerror} ({name}, errno {problem.errno}{file})"
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError as error:
        _log.debug("%s stays until a later attempt deletes it: %s", folder.name, error)
        return False
    return True
