"""A bounded queue and a thread in front of destinations that can be slow, unreachable or broken."""

import contextlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_log = logging.getLogger(__name__)
_CAPACITY = 1000  # points; a healthy sink is never this far behind

# The match is greedy, because a password can contain an @ that was not escaped.
_USERINFO = re.compile(r"://[^/\s]+@")
_SECRET_SUFFIXES = ("_KEY", "_TOKEN", "_PASSWORD", "_SECRET")  # of names of environment variables
_SHORTEST_SECRET = 4  # characters; shorter values would be found in ordinary text


@dataclass(frozen=True)
class Point:
    """Numbers that were measured at a step."""

    step: int
    part: str  # train | validation
    values: dict[str, float]


class Sink(Protocol):
    """A destination of points. All methods are called by one thread and may raise any exception."""

    name: str

    def start(self, first: int) -> None:
        """Open the destination for an attempt whose first step is `first`.

        Points of that step and later ones, which an earlier attempt sent, are sent again.
        """

    def log(self, point: Point) -> None:
        """Write one point."""

    def finish(self) -> None:
        """Close the destination. No more points follow."""


class QueuedSink:
    """Feeds one sink from a queue. Only `wait` blocks, and each kind of error is logged once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._queue: queue.Queue[Point | None] = queue.Queue(_CAPACITY)
        self._finishing = threading.Event()
        self._logged: set[str] = set()  # kinds of errors
        self._thread: threading.Thread | None = None

    def start(self, first: int) -> None:
        """Start the sink and accept points from now on."""
        # A daemon thread, because a sink that hangs must not keep the process alive.
        self._thread = threading.Thread(
            target=self._run, args=(first,), name=self._sink.name, daemon=True
        )
        self._thread.start()

    def put(self, point: Point) -> None:
        """Add a point to the queue, or drop it if the queue is full."""
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait(point)
        except queue.Full:
            self._log_error(f"is {_CAPACITY} points behind; points are dropped")

    def finish(self) -> None:
        """Accept no more points."""
        self._finishing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)  # wakes the thread

    def wait(self, deadline: float) -> None:
        """Wait until everything is written, or until `deadline` (time.monotonic)."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._log_error("did not finish in time; its last points are lost")

    def _run(self, first: int) -> None:
        try:
            self._sink.start(first)
        except Exception as error:
            self._log_error(f"is not used in this attempt: {_describe(error)}")
            return
        while (point := self._next()) is not None:
            try:
                self._sink.log(point)
            except Exception as error:
                self._log_error(f"loses points: {_describe(error)}")
        try:
            self._sink.finish()
        except Exception as error:
            self._log_error(f"was not closed properly: {_describe(error)}")

    def _next(self) -> Point | None:
        while True:
            try:
                point = self._queue.get(timeout=1.0)
            except queue.Empty:
                point = None
            if point is not None or (self._finishing.is_set() and self._queue.empty()):
                return point

    def _log_error(self, problem: str) -> None:
        kind = problem.split(":")[0]
        if kind not in self._logged:
            self._logged.add(kind)
            _log.error("%s %s; training goes on", self._sink.name, problem)


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # MLflow's errors contain the server's address, which can include user and password.
    line = redacted(lines[0], os.environ) if lines else "no message"
    return f"{type(error).__name__} ({line})"


def redacted(text: str, environment: Mapping[str, str]) -> str:
    """Return `text` with *** in place of secrets.

    Secrets are what precedes the @ of an address, and the values of environment variables with a
    name such as WANDB_API_KEY or MLFLOW_TRACKING_PASSWORD.
    """
    secrets = {
        value.strip()
        for name, value in environment.items()
        if name.upper().endswith(_SECRET_SUFFIXES) and len(value.strip()) >= _SHORTEST_SECRET
    }
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a prefix of another
        text = text.replace(secret, "***")
    return _USERINFO.sub("://***@", text)
