"""A checkpoint in the making: training goes on while it is written, published and read back.

Saving stalls training for the copy to host memory only. The rest are phases in a thread of each
rank; "I finished my phase" rides in the step's agreement (agreement.py), and when all ranks have
finished one, all begin the next, at the same step. So there is no collective beside training's own,
and no two ranks ever disagree about what became of a checkpoint:

    write    every rank its files
    publish  rank 0 the manifest: from here on the checkpoint exists
    verify   every rank reads back the files of the next one
    settle   rank 0 marks it as verified and removes what it supersedes
"""

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
from finetune_trainer.checkpoint import write
from finetune_trainer.checkpoint.fragments import adam_step
from finetune_trainer.checkpoint.snapshot import Snapshot
from finetune_trainer.checkpoint.write import Owner, Position, Share
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Peers
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger(__name__)
_WRITE, _PUBLISH, _VERIFY, _SETTLE = range(4)  # phases
_MARKS = (_PUBLISH, _SETTLE)  # those in which rank 0 says something about the checkpoint
_MARGIN = 1.2
_LOOK = 0.005  # s between two looks when nothing but the save is left to wait for


@dataclass(frozen=True)
class Saved:
    """What became of a checkpoint; `problem` None: it is published and verified."""

    step: int
    problem: str | None


class Saver:
    """One rank's part; all its methods are called at the same steps on all ranks."""

    def __init__(
        self,
        engine: Engine,
        snapshot: Snapshot,
        paths: RunPaths,
        owner: Owner,
        peers: Peers,
        advance: Callable[[], None],
        settle: Callable[[Path], None],
    ) -> None:
        """`settle` is rank 0's last phase; it runs in a thread."""
        self._engine, self._snapshot, self._paths = engine, snapshot, paths
        self._owner, self._peers = owner, peers
        self._advance, self._settle = advance, settle
        self._save: _Save | None = None
        self._target = 0
        self._finished = 0
        self._problem: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.stalled = 0.0
        """Seconds for which training waited for the newest save."""
        self._seconds: float | None = None

    @property
    def idle(self) -> bool:
        """Nothing is in the making."""
        return self._save is None

    @property
    def finished(self) -> int:
        """Phases that this rank finished, over its life: for the agreement."""
        return self._finished

    @property
    def failed(self) -> bool:
        """The newest of them failed: for the agreement."""
        return self._problem is not None

    def expect(self, earlier: Manifest) -> None:
        """The run was saved before; saving it again takes as long if as many ranks do it."""
        if earlier.world_size == self._peers.world:
            self._seconds = earlier.write_seconds

    @property
    def expected_seconds(self) -> float | None:
        """What a save is to take until it is published; None when none was measured."""
        return None if self._seconds is None else _MARGIN * self._seconds

    @property
    def remaining_seconds(self) -> float | None:
        """What the save in the making is still to take until it is published; None when unknown.

        0 when nothing has to be waited for.
        """
        if self._save is None or self.published is not None:
            return 0.0
        expected = self.expected_seconds
        elapsed = time.monotonic() - self._save.started
        return None if expected is None else max(0.0, expected - elapsed)

    @property
    def published(self) -> int | None:
        """Step of the save in the making, once it is published: all ranks know that it is."""
        save = self._save
        return save.position.step if save and save.phase > _PUBLISH else None

    def begin(self, position: Position, *, sound: bool) -> None:
        """Copy the state and begin to write it; only when idle.

        Not `sound`: it is published only after `judge` has said that its weights are.
        """
        assert self._save is None
        started = time.monotonic()
        share = Share(
            rank=self._peers.rank,
            world=self._peers.world,
            zero_stage=self._engine.stage,
            tensors=self._snapshot.take(),
            adam_step=adam_step(self._engine),
            random=write.random_state(),
        )
        folder = self._paths.checkpoint(position.step, self._owner.epoch)
        self._save = _Save(position, share, folder, started, True if sound else None)
        thread = self._start(self._write)
        if not self._snapshot.is_copy:
            thread.join()
        self.stalled = time.monotonic() - started

    @property
    def undecided(self) -> bool:
        """It waits for `judge`."""
        return self._save is not None and self._save.sound is None

    def judge(self, step: int, *, sound: bool) -> None:
        """The loss of the weights after a step turned out to be finite, or not."""
        if self._save and self._save.position.step == step and self._save.sound is None:
            self._save.sound = sound

    def hear(self, finished: int, failed: int) -> Saved | None:
        """Take in the agreed sums: the next phase begins, or the save is over."""
        save = self._save
        if save is None or finished < self._target * self._peers.world:
            return None
        if failed:
            return self._abandon(save)
        if save.phase == _WRITE and save.sound is None:
            return None
        if save.phase == _WRITE and not save.sound:
            self._problem = ValueError("the loss of its weights is not finite")
            return self._abandon(save)
        save.phase += 1
        phases = {_PUBLISH: self._publish, _VERIFY: self._verify, _SETTLE: self._conclude}
        if save.phase in phases:
            self._start(phases[save.phase])
            return None
        self._save = None
        return Saved(save.position.step, None)

    def drain(self, is_too_late: Callable[[], bool]) -> Saved | None:
        """Wait for what is in the making; collective. It must have been judged as sound.

        None when there is nothing, or when it is too late on any rank before it is over.
        """
        while self._save is not None:
            vector = torch.tensor([self._finished, int(self.failed), int(is_too_late())])
            dist.all_reduce(vector, group=self._peers.control)
            finished, failed, late = vector.tolist()
            saved = self.hear(finished, failed)
            if saved is not None or late:
                return saved
            time.sleep(_LOOK)
        return None

    def wait_for_marks(self) -> None:
        """Until rank 0 writes no manifest and no mark any more.

        Its other phases, which may take minutes, make nothing that could be resumed from; the next
        phase begins with `hear` only.
        """
        if self._thread is not None and self._save is not None and self._save.phase in _MARKS:
            self._thread.join()

    def _start(self, phase: Callable[["_Save"], None]) -> threading.Thread:
        save = self._save
        assert save is not None
        self._target += 1

        def work() -> None:
            try:
                phase(save)
            except Exception as error:  # every rank must hear of it, whatever it is
                self._problem = error
            self._finished += 1  # last: from here on the main thread may read the rest

        self._thread = threading.Thread(target=work, name="saver", daemon=True)
        self._thread.start()
        return self._thread

    def _write(self, save: "_Save") -> None:
        write.write(save.folder, save.share, self._advance)

    def _publish(self, save: "_Save") -> None:
        seconds = time.monotonic() - save.started
        if self._peers.rank == 0:
            write.publish(save.folder, self._paths, self._owner, save.position, save.share, seconds)
        self._seconds = seconds

    def _verify(self, save: "_Save") -> None:
        write.verify(save.folder, self._peers.reads_back, self._advance)

    def _conclude(self, save: "_Save") -> None:
        if self._peers.rank == 0:
            self._settle(save.folder)

    def _abandon(self, save: "_Save") -> Saved:
        """All ranks are here, and no thread runs: collectives are safe."""
        problem, self._problem, self._save = self._problem, None, None
        text = self._first_problem(problem)
        # The manifest first: a folder that is half gone must not look whole.
        if self._peers.rank == 0:
            write.withdraw(save.folder)
        dist.barrier(self._peers.control)
        write.discard(save.folder, self._peers.rank)
        dist.barrier(self._peers.control)
        if self._peers.rank == 0:
            _remove_if_empty(save.folder)
        return Saved(save.position.step, text)

    def _first_problem(self, problem: BaseException | None) -> str:
        """What failed on any rank; being fenced ends this process on every rank."""
        mine = None
        if problem is not None:
            fenced = problem if isinstance(problem, TrainerError) else None
            mine = (str(problem) or type(problem).__name__, fenced and int(fenced.code))
        heard: list[Any] = [None] * self._peers.world
        dist.all_gather_object(heard, mine, group=self._peers.control)
        told = [(rank, *found) for rank, found in enumerate(heard) if found is not None]
        for _, message, code in told:
            if code is not None:
                raise TrainerError(ExitCode(code), message)
        rank, message, _ = told[0]
        return f"rank {rank}: {message}"


@dataclass
class _Save:
    position: Position
    share: Share
    folder: Path
    started: float
    sound: bool | None
    phase: int = _WRITE


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        _log.debug("%s stays until the next clean-up: %s", folder.name, error)
