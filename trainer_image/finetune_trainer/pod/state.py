"""What the supervisor knows of its pod, and the report and result made of it."""

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api.progress import CheckpointRecord, Evaluation, Output, Progress, Stage, StepLedger
from finetune_api.run import AttemptRecord, PrepareResult, RankHeartbeat, Report, Result, RunConfig


@dataclass
class Failure:
    """A planned end that a child told about."""

    code: int
    reason: str
    message: str


@dataclass
class PodState:
    """Facts heard from children; the lock guards them against the report server's threads."""

    config: RunConfig
    worker_index: int
    stage: Stage = "LoadingModel"
    stage_since: datetime = field(default_factory=lambda: datetime.now(UTC))
    activity: dict[str, int] = field(default_factory=dict)
    moved_at: float = field(default_factory=time.monotonic)
    heard: dict[int, float] = field(default_factory=dict)
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    ledger: StepLedger = field(default_factory=StepLedger)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    prepared: PrepareResult | None = None
    output: Output | None = None
    final_step: int | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    earlier: list[AttemptRecord] = field(default_factory=list)
    sequence: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, child: str, rank: int | None, message: dict[str, Any]) -> None:
        """Take in one line from a child; rank 0 (or a child without a rank) leads the stage."""
        with self.lock:
            self.sequence += 1
            now = time.monotonic()
            if rank is not None:
                self.heard[rank] = now
            if message["activity"] != self.activity.get(child):
                self.activity[child] = message["activity"]
                self.moved_at = now
            if "stage" in message and rank in (None, min(self.heard, default=None)):
                self.stage, self.stage_since = message["stage"], datetime.now(UTC)
                self.moved_at = now
            self._take(child, message)

    def _take(self, child: str, message: dict[str, Any]) -> None:
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
        """For the operator."""
        with self.lock:
            now = time.monotonic()
            lead = self.worker_index == 0
            return Report(
                job_uid=self.config.job_uid,
                attempt=self.config.attempt,
                worker_index=self.worker_index,
                sequence=self.sequence,
                stage=self.stage,
                stage_since=self.stage_since,
                activity=sum(self.activity.values()),
                activity_age_seconds=round(now - self.moved_at, 1),
                ranks=[
                    RankHeartbeat(rank=rank, age_seconds=round(now - at, 1))
                    for rank, at in sorted(self.heard.items())
                ],
                progress=self.progress if lead else None,
                evaluation=self.evaluation if lead else None,
                ledger=self.ledger if lead else None,
                checkpoints=self.checkpoints if lead else [],
                earlier_attempts=self.earlier if lead else [],
            )

    def silence(self, now: float) -> str:
        """Which local rank was not heard for the longest time, for a message; may be empty."""
        if not self.heard:
            return ""
        rank, at = min(self.heard.items(), key=lambda entry: entry[1])
        return f"; rank {rank} was last heard {now - at:.0f} s ago"

    def result(self, outcome: str, reason: str, message: str, failed_rank: int | None) -> Result:
        """For the container's termination message."""
        with self.lock:
            lead = self.worker_index == 0
            return Result.model_validate(
                {
                    "outcome": outcome,
                    "reason": reason,
                    "message": message[:1024],
                    "failed_rank": failed_rank,
                    "progress": self.progress if lead else None,
                    "evaluation": self.evaluation if lead else None,
                    "ledger": self.ledger if lead and self.config.role == "worker" else None,
                    "checkpoints": self.checkpoints if lead else [],
                    "output": self.output,
                    "prepared": self.prepared,
                }
            )
