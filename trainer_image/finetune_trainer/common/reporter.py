"""How computing code reports its progress and results to the supervisor.

Child processes send JSON lines through a pipe that the supervisor gives them. Code that computes
knows only the `Reporter` protocol.
"""

import json
import os
import threading
import time
from typing import Protocol

from finetune_api.progress import CheckpointRecord, Evaluation, Progress, Stage, StepLedger
from finetune_trainer.common.errors import TrainerError

ENV_CHANNEL = "FINETUNE_CHANNEL"
"""Environment variable with the file descriptor of the pipe to the supervisor."""
_ACTIVITY_SECONDS = 1.0  # shortest time between two lines that contain nothing but activity


class Reporter(Protocol):
    """Receives the progress of work."""

    def stage(self, stage: Stage) -> None:
        """Report that a new stage began."""

    def advance(self, amount: int = 1) -> None:
        """Report that `amount` units of work (rows, bytes, tensors, steps) were completed."""

    def training(
        self,
        progress: Progress | None = None,
        evaluation: Evaluation | None = None,
        ledger: StepLedger | None = None,
        checkpoints: list[CheckpointRecord] | None = None,
    ) -> None:
        """Report new facts about the training. None means unchanged."""


class ChannelReporter:
    """A Reporter that writes to the supervisor's pipe. Threads may share it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._activity = 0
        self._activity_sent = 0.0  # time.monotonic()
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> "ChannelReporter":
        """Return a reporter for the pipe that the supervisor passed to this process."""
        return cls(int(os.environ[ENV_CHANNEL]))

    def stage(self, stage: Stage) -> None:
        """Report that a new stage began."""
        self._send({"stage": stage})

    def advance(self, amount: int = 1) -> None:
        """Count completed work. The count is sent with every line, and at most once a second."""
        self._activity += amount
        if time.monotonic() - self._activity_sent >= _ACTIVITY_SECONDS:
            self._activity_sent = time.monotonic()
            self._send({"activity": self._activity})

    def waiting(self, what: str | None) -> None:
        """Report what this process waits for, or that it goes on. Such a wait is not a hang."""
        self._activity += 1
        self._send({"waiting_for": what})

    def training(
        self,
        progress: Progress | None = None,
        evaluation: Evaluation | None = None,
        ledger: StepLedger | None = None,
        checkpoints: list[CheckpointRecord] | None = None,
    ) -> None:
        """Report new facts about the training. None means unchanged."""
        facts: dict[str, object] = {
            name: value.to_dict()
            for name, value in (
                ("progress", progress),
                ("evaluation", evaluation),
                ("ledger", ledger),
            )
            if value is not None
        }
        if checkpoints is not None:
            facts["checkpoints"] = [record.to_dict() for record in checkpoints]
        self._send(facts)

    def error(self, error: TrainerError) -> None:
        """Report why this process ends."""
        failure = {"code": int(error.code), "reason": error.reason, "message": error.message}
        self._send({"error": failure})

    def result(self, **facts: object) -> None:
        """Report the result of the work for which this process was started."""
        self._send({"result": facts})

    def _send(self, message: dict[str, object]) -> None:
        data = (json.dumps({**message, "activity": self._activity}) + "\n").encode()
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]
