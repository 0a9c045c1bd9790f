"""A sink that is slow, broken or unreachable costs a line in the log and nothing else."""

import logging
import threading
import time
from dataclasses import dataclass, field

import pytest

from finetune_trainer.tracking import sink as sink_module
from finetune_trainer.tracking.sink import Point, QueuedSink


def point(step: int) -> Point:
    return Point(step, "train", {"loss": 1.0})


@dataclass
class Sink:
    """Records its calls. Can be made to block or to fail."""

    name: str = "tracker X"
    gate: threading.Event = field(default_factory=threading.Event)
    broken: tuple[str, ...] = ()
    seen: list[int | str] = field(default_factory=list)

    def start(self, first: int) -> None:
        self._do("start")
        self.seen.append(f"from {first}")

    def log(self, point: Point) -> None:
        self.gate.wait()
        self._do("log")
        self.seen.append(point.step)

    def finish(self) -> None:
        self._do("finish")
        self.seen.append("end")

    def _do(self, what: str) -> None:
        if what in self.broken:
            raise ConnectionError(f"no route\nto {what}")


def run_attempt(sink: Sink, steps: int, *, blocked: bool = False, timeout: float = 30.0) -> None:
    """Send the points of `steps` steps and wait for the sink."""
    queued = QueuedSink(sink)
    if not blocked:
        sink.gate.set()
    queued.start(3)
    for step in range(3, 3 + steps):
        queued.put(point(step))
    queued.finish()
    queued.wait(time.monotonic() + timeout)


def test_everything_arrives_in_order() -> None:
    sink = Sink()
    run_attempt(sink, 100)
    assert sink.seen == ["from 3", *range(3, 103), "end"]


@pytest.mark.parametrize(
    ("broken", "problem", "seen"),
    [
        (("start",), "is not used in this attempt: ConnectionError (no route)", []),
        (("log",), "loses points: ConnectionError (no route)", ["from 3", "end"]),
        (
            ("finish",),
            "was not closed properly: ConnectionError (no route)",
            ["from 3", *range(3, 13)],
        ),
    ],
)
def test_each_kind_of_error_is_logged_once(
    broken: tuple[str, ...], problem: str, seen: list, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink(broken=broken)
    with caplog.at_level(logging.ERROR):
        run_attempt(sink, 10)
    assert [r.getMessage() for r in caplog.records] == [f"tracker X {problem}; training goes on"]
    assert sink.seen == seen


def test_a_sink_that_hangs_does_not_block_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_CAPACITY", 10)
    sink = Sink()
    with caplog.at_level(logging.ERROR):
        run_attempt(sink, 500, blocked=True, timeout=0.05)
    assert [r.getMessage() for r in caplog.records] == [
        "tracker X is 10 points behind; points are dropped; training goes on",
        "tracker X did not finish in time; its last points are lost; training goes on",
    ]
    sink.gate.set()


def test_a_sink_that_recovers_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    """A tracking server that is restarted misses only the points of that time."""
    sink = Sink(broken=("log",))
    sink.gate.set()
    queued = QueuedSink(sink)
    queued.start(1)
    queued.put(point(1))
    while "loses points" not in caplog.text:
        time.sleep(0.01)
    sink.broken = ()
    queued.put(point(2))
    queued.finish()
    queued.wait(time.monotonic() + 30)
    assert sink.seen == ["from 1", 2, "end"]


def test_a_sink_that_was_never_started_is_not_waited_for() -> None:
    queued = QueuedSink(Sink())
    queued.put(point(1))
    queued.finish()
    queued.wait(time.monotonic() + 30)
