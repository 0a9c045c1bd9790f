"""What happened at every step: JSON lines on storage, and the trackers that the job names.

Kept by rank 0. Whatever is written to (a shared file system, a server) may be slow, away or full:
a step never waits for it, and the job never fails because of it.
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
from finetune_trainer.common.grace import FLUSH_SECONDS
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.tracking import trackers
from finetune_trainer.tracking.sink import Outlet, Point


class RunLog:
    """Tells every step and every evaluation; on other ranks than 0 it says nothing."""

    def __init__(self, config: RunConfig, paths: RunPaths, epoch: int, rank: int) -> None:
        self._outlets: list[Outlet] = []
        if rank == 0:
            sinks = [JsonLines(paths.log(epoch)), *trackers.of(config, paths)]
            self._outlets = [Outlet(sink) for sink in sinks]

    def begin(self, finished: int) -> None:
        """The attempt goes on after so many finished steps."""
        for outlet in self._outlets:
            outlet.start(finished + 1)

    def step(self, progress: Progress, seconds: float) -> None:
        """A step ended that took `seconds`."""
        values = {
            "loss": progress.train_loss,
            "learningRate": progress.learning_rate,
            "gradNorm": progress.grad_norm,
            "epoch": progress.epoch,
            "tokensSeen": progress.tokens_seen,
            "tokensPerSecond": progress.tokens_per_second,
            "mfu": progress.mfu,
            "skippedSteps": progress.skipped_steps,
            "seconds": round(seconds, 4),
        }
        self._tell(progress.step, "train", values)

    def evaluation(self, step: int, found: Evaluation) -> None:
        """An evaluation after `step` ended; nothing is told when it measured no finite loss."""
        if found.last is not None and found.last_step == step:
            perplexity = math.exp(min(found.last, 700.0))  # exp(710) is no float any more
            self._tell(step, "validation", {"loss": found.last, "perplexity": perplexity})

    def close(self) -> None:
        """Wait a little until all is written; what takes longer is left behind."""
        deadline = time.monotonic() + FLUSH_SECONDS
        for outlet in self._outlets:
            outlet.finish()
        for outlet in self._outlets:
            outlet.wait(deadline)

    def _tell(self, step: int, part: str, values: dict[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        for outlet in self._outlets:
            outlet.put(Point(step, part, known))


class JsonLines:
    """`log/<epoch>.jsonl`: {"time", "step", "part": "train" or "validation", "loss", ...}."""

    name = "the log of steps"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def start(self, first: int) -> None:  # noqa: ARG002 - every attempt has a file of its own
        """Open it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def log(self, point: Point) -> None:
        """One line."""
        assert self._file is not None
        line = {"time": format_time(datetime.now(UTC)), "step": point.step, "part": point.part}
        self._file.write(json.dumps(line | point.values) + "\n")

    def finish(self) -> None:
        """Close it."""
        assert self._file is not None
        self._file.close()


def train_loss(paths: RunPaths, step: int) -> float | None:
    """Loss of a step as the newest attempt that made it wrote it down; None when none did."""
    files = [file for file in paths.logs.glob("*.jsonl") if file.stem.isdecimal()]
    for file in sorted(files, key=lambda file: -int(file.stem)):
        for line in _lines(file):
            if (line.get("part"), line.get("step")) == ("train", step) and "loss" in line:
                return float(line["loss"])
    return None


def _lines(file: Path) -> list[dict[str, Any]]:
    """The readable ones: the last one of a killed attempt may be cut."""
    lines = []
    try:
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    except OSError:
        return []
    return lines
