"""What the supervisor knows about its pod, and the report and the result made from it."""

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api.progress import CheckpointRecord, Evaluation, Output, Progress, Stage, StepLedger
from finetune_api.run import AttemptRecord, PrepareResult, Report, Result, Role

MESSAGE_LENGTH = 1024
"""The most characters that Result.message can have."""
WAITING_LENGTH = 512
"""The most characters that Report.waiting_for can have."""


@dataclass
class Failure:
    """Why a process, or the pod, failed."""

    code: int
    reason: str
    message: str


@dataclass
class PodState:
    """Facts that child processes reported. The lock guards them against the server's threads."""

    job_uid: str
    attempt: int
    role: Role
    worker_index: int
    result_max_bytes: int | None = None
    stage: Stage = "LoadingModel"
    stage_since: datetime = field(default_factory=lambda: datetime.now(UTC))
    waiting_for: str | None = None  # while the gang was never complete
    activity: dict[str, int] = field(default_factory=dict)  # child -> units of work
    active_at: float = field(default_factory=time.monotonic)  # when activity last grew
    received_at: dict[int, float] = field(default_factory=dict)  # rank -> time of the last message
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    ledger: StepLedger = field(default_factory=StepLedger)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    prepared: PrepareResult | None = None
    output: Output | None = None
    final_step: int | None = None
    failures: dict[str, Failure] = field(default_factory=dict)  # by child
    earlier: list[AttemptRecord] = field(default_factory=list)
    sequence: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def process(self, child: str, rank: int | None, message: dict[str, Any]) -> None:
        """Process a message from a child.

        Only the lowest rank, or a child without a rank, determines the stage.
        """
        with self.lock:
            self.sequence += 1
            now = time.monotonic()
            if rank is not None:
                self.received_at[rank] = now
            if message["activity"] != self.activity.get(child):
                self.activity[child] = message["activity"]
                self.active_at = now
            if rank in (None, min(self.received_at, default=None)):
                if "stage" in message:
                    self.stage, self.stage_since = message["stage"], datetime.now(UTC)
                    self.active_at = now
                self.waiting_for = message.get("waiting_for", self.waiting_for)
            self._store(child, message)

    def wait_for(self, what: str | None) -> None:
        """Record what this pod waits for before its children start. Such a wait is not a hang."""
        with self.lock:
            self.active_at = time.monotonic()
            if self.waiting_for != what:
                self.waiting_for = what
                self.sequence += 1

    def _store(self, child: str, message: dict[str, Any]) -> None:
        if "progress" in message:
            self.progress = Progress.model_validate(message["progress"])
        if "evaluation" in message:
            self.evaluation = Evaluation.model_validate(message["evaluation"])
        if "ledger" in message:
            self.ledger = StepLedger.model_validate(message["ledger"])
        if "checkpoints" in message:
            records = message["checkpoints"]
            self.checkpoints = [CheckpointRecord.model_validate(r) for r in records]
        if "error" in message:
            self.failures[child] = Failure(**message["error"])
        result = message.get("result", {})
        if "prepared" in result:
            self.prepared = PrepareResult.model_validate(result["prepared"])
        if "final_step" in result:
            self.final_step = result["final_step"]
        if "output" in result:
            self.output = Output.model_validate(result["output"])

    def report(self) -> Report:
        """Return the report for the operator."""
        with self.lock:
            now = time.monotonic()
            lead = self.worker_index == 0
            return Report(
                job_uid=self.job_uid,
                attempt=self.attempt,
                worker_index=self.worker_index,
                sequence=self.sequence,
                stage=self.stage,
                stage_since=self.stage_since,
                activity=sum(self.activity.values()),
                activity_age_seconds=round(now - self.active_at, 1),
                waiting_for=self.waiting_for and self.waiting_for[:WAITING_LENGTH],
                progress=self.progress if lead else None,
                evaluation=self.evaluation if lead else None,
                ledger=self.ledger if lead else None,
                checkpoints=self.checkpoints if lead else [],
                earlier_attempts=self.earlier if lead else [],
            )

    def most_silent_rank(self, now: float) -> str:
        """Return the end of a message that names the local rank with the oldest message.

        The text is empty if no rank has reported anything.
        """
        if not self.received_at:
            return ""
        rank, at = min(self.received_at.items(), key=lambda entry: entry[1])
        return f"; rank {rank} last reported {now - at:.0f} s ago"

    def result(self, outcome: str, reason: str, message: str) -> Result:
        """Return the result for the container's termination message."""
        with self.lock:
            lead = self.worker_index == 0
            return Result.model_validate(
                {
                    "outcome": outcome,
                    "reason": reason,
                    "message": message[:MESSAGE_LENGTH],
                    "progress": self.progress if lead else None,
                    "evaluation": self.evaluation if lead else None,
                    "ledger": self.ledger if lead and self.role == "worker" else None,
                    "checkpoints": self.checkpoints if lead else [],
                    "output": self.output,
                    "prepared": self.prepared,
                }
            )
