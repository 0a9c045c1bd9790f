"""How children talk to the supervisor: JSON lines through an inherited pipe."""

import json
import os
import threading
import time

from finetune_api.progress import CheckpointRecord, Evaluation, Progress, Stage, StepLedger
from finetune_trainer.common.errors import TrainerError

ENV = "FINETUNE_CHANNEL"
_HEARTBEAT = 1.0  # s; work is counted at once and told at most this often


class ChannelReporter:
    """A Reporter that writes to the supervisor. Lines are short: a pipe writes them whole."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._activity = 0
        self._told = 0.0
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> "ChannelReporter":
        """The pipe that the supervisor passed on."""
        return cls(int(os.environ[ENV]))

    def stage(self, stage: Stage) -> None:
        """A new stage began."""
        self._send({"stage": stage})

    def advance(self, amount: int = 1) -> None:
        """Completed work."""
        self._activity += amount
        if time.monotonic() - self._told >= _HEARTBEAT:
            self._told = time.monotonic()
            self._send({"activity": self._activity})

    def training(
        self,
        progress: Progress | None = None,
        evaluation: Evaluation | None = None,
        ledger: StepLedger | None = None,
        checkpoints: list[CheckpointRecord] | None = None,
    ) -> None:
        """New facts; None means unchanged."""
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
        """Why this process ends."""
        failure = {"code": int(error.code), "reason": error.reason, "message": error.message}
        self._send({"error": failure})

    def result(self, **facts: object) -> None:
        """What this process was started to find out."""
        self._send({"result": facts})

    def _send(self, message: dict[str, object]) -> None:
        data = (json.dumps({**message, "activity": self._activity}) + "\n").encode()
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]
