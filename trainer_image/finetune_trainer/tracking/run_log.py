"""The record of every step and evaluation, sent to JSON lines on storage and to the trackers.

Only rank 0 keeps it. The destinations (a shared file system, a server) can be slow, unreachable or
full. A step never waits for them, and the job never fails because of them.
"""

import json
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from finetune_api.base import format_time
from finetune_api.progress import Evaluation, Progress
from finetune_api.run import RunConfig
from finetune_trainer.common.stop_signal import FLUSH_SECONDS
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.tracking import trackers
from finetune_trainer.tracking.sink import Point, QueuedSink


class RunLog:
    """Sends steps and evaluations to all sinks. On ranks other than 0 it does nothing."""

    def __init__(self, config: RunConfig, paths: RunPaths, epoch: int, rank: int) -> None:
        self._sinks: list[QueuedSink] = []
        if rank == 0:
            tracked = trackers.TrackedRun.of(config)
            sinks = [
                JsonLines(paths.log(epoch)),
                *trackers.of(config.tracking, tracked, paths.storage),
            ]
            self._sinks = [QueuedSink(sink) for sink in sinks]

    def begin(self, finished: int) -> None:
        """Open all sinks. The attempt continues after `finished` steps."""
        for sink in self._sinks:
            sink.start(finished + 1)

    def step(self, progress: Progress, seconds: float) -> None:
        """Record a step that took `seconds`."""
        values = {
            "loss": progress.train_loss,
            "routerLoss": progress.router_loss,
            "learningRate": progress.learning_rate,
            "gradNorm": progress.grad_norm,
            "epoch": progress.epoch,
            "tokensSeen": progress.tokens_seen,
            "tokensPerSecond": progress.tokens_per_second,
            "mfu": progress.mfu,
            "skippedSteps": progress.skipped_steps,
            "seconds": round(seconds, 4),
        }
        self._emit(progress.step, "train", values)

    def evaluation(self, step: int, found: Evaluation) -> None:
        """Record an evaluation after `step`, unless it measured no finite loss."""
        if found.last is not None and found.last_step == step:
            perplexity = math.exp(min(found.last, 700.0))  # exp(710) overflows
            self._emit(step, "validation", {"loss": found.last, "perplexity": perplexity})

    def close(self) -> None:
        """Close all sinks, and wait at most FLUSH_SECONDS for what they still hold."""
        deadline = time.monotonic() + FLUSH_SECONDS
        for sink in self._sinks:
            sink.finish()
        for sink in self._sinks:
            sink.wait(deadline)

    def _emit(self, step: int, part: str, values: dict[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        for sink in self._sinks:
            sink.put(Point(step, part, known))


class JsonLines:
    """`log/<epoch>.jsonl`: {"time", "step", "part": "train" or "validation", "loss", ...}."""

    name = "the log of steps"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def start(self, first: int) -> None:  # noqa: ARG002 - each attempt has its own file
        """Open the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def log(self, point: Point) -> None:
        """Write one line."""
        assert self._file is not None
        line = {"time": format_time(datetime.now(UTC)), "step": point.step, "part": point.part}
        self._file.write(json.dumps(line | point.values) + "\n")

    def finish(self) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()


def train_loss(paths: RunPaths, step: int) -> float | None:
    """Return the loss of a step from the newest log that contains it, or None."""
    files = [file for file in paths.logs.glob("*.jsonl") if file.stem.isdecimal()]
    for file in sorted(files, key=lambda file: -int(file.stem)):
        for line in _lines(file):
            if (line.get("part"), line.get("step")) == ("train", step) and "loss" in line:
                return float(line["loss"])
    return None


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the readable lines. A killed attempt can leave an incomplete one."""
    lines = []
    try:
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                lines.append(line)
    except OSError:
        return []
    return lines
