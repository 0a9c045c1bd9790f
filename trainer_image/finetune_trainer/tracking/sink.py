"""A bounded queue and a thread before anything that may be slow, away or broken."""

import contextlib
import logging
import os
import queue
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from finetune_trainer.common.redact import redacted

_log = logging.getLogger(__name__)
_ROOM = 1000  # points; more than any healthy sink is ever behind


@dataclass(frozen=True)
class Point:
    """Numbers that were measured at a step."""

    step: int
    part: str  # train | validation
    values: dict[str, float]


class Sink(Protocol):
    """Whatever takes points. Its methods run in one thread and may raise what they like."""

    name: str

    def start(self, first: int) -> None:
        """The attempt's first step is `first`; what was told of later ones will be told again."""

    def log(self, point: Point) -> None:
        """Take one point."""

    def finish(self) -> None:
        """No more points come."""


class Outlet:
    """One sink. Nothing here blocks but `wait`, and each kind of trouble is said once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._queue: queue.Queue[Point | None] = queue.Queue(_ROOM)
        self._finishing = threading.Event()
        self._said: set[str] = set()
        self._thread: threading.Thread | None = None

    def start(self, first: int) -> None:
        """Begin to take points."""
        # A daemon: a sink that hangs must not keep the process.
        self._thread = threading.Thread(
            target=self._run, args=(first,), name=self._sink.name, daemon=True
        )
        self._thread.start()

    def put(self, point: Point) -> None:
        """Hand over a point; it is dropped when the sink is too far behind."""
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait(point)
        except queue.Full:
            self._say(f"is {_ROOM} points behind; points are dropped")

    def finish(self) -> None:
        """No more points come."""
        self._finishing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)  # wakes the thread

    def wait(self, deadline: float) -> None:
        """Until everything is written, or until `deadline` (time.monotonic)."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._say("does not come to an end; its last points are lost")

    def _run(self, first: int) -> None:
        try:
            self._sink.start(first)
        except Exception as error:
            self._say(f"is not used in this attempt: {_words(error)}")
            return
        while (point := self._next()) is not None:
            try:
                self._sink.log(point)
            except Exception as error:
                self._say(f"loses points: {_words(error)}")
        try:
            self._sink.finish()
        except Exception as error:
            self._say(f"was not finished: {_words(error)}")

    def _next(self) -> Point | None:
        while True:
            try:
                point = self._queue.get(timeout=1.0)
            except queue.Empty:
                point = None
            if point is not None or (self._finishing.is_set() and self._queue.empty()):
                return point

    def _say(self, trouble: str) -> None:
        kind = trouble.split(":")[0]
        if kind not in self._said:
            self._said.add(kind)
            _log.error("%s %s; training goes on", self._sink.name, trouble)


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # Those of MLflow repeat the server's address, user and password included.
    line = redacted(lines[0], os.environ) if lines else "no message"
    return f"{type(error).__name__} ({line})"
