"""A sink that is slow, broken or dead costs a line in the log and nothing else."""

import logging
import threading
import time
from dataclasses import dataclass, field

import pytest

from finetune_trainer.tracking import sink as sink_module
from finetune_trainer.tracking.sink import Outlet, Point


def point(step: int) -> Point:
    return Point(step, "train", {"loss": 1.0})


@dataclass
class Sink:
    """Remembers what it is told; may be held up or broken."""

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


def told(sink: Sink, steps: int, *, open_gate: bool = True, patience: float = 30.0) -> None:
    """An attempt of some steps."""
    out = Outlet(sink)
    if open_gate:
        sink.gate.set()
    out.start(3)
    for step in range(3, 3 + steps):
        out.put(point(step))
    out.finish()
    out.wait(time.monotonic() + patience)


def test_everything_arrives_in_order() -> None:
    sink = Sink()
    told(sink, 100)
    assert sink.seen == ["from 3", *range(3, 103), "end"]


@pytest.mark.parametrize(
    ("broken", "words", "seen"),
    [
        (("start",), "is not used in this attempt: ConnectionError (no route)", []),
        (("log",), "loses points: ConnectionError (no route)", ["from 3", "end"]),
        (("finish",), "was not finished: ConnectionError (no route)", ["from 3", *range(3, 13)]),
    ],
)
def test_trouble_is_said_once(
    broken: tuple[str, ...], words: str, seen: list, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink(broken=broken)
    with caplog.at_level(logging.ERROR):
        told(sink, 10)
    assert [r.getMessage() for r in caplog.records] == [f"tracker X {words}; training goes on"]
    assert sink.seen == seen


def test_one_that_hangs_holds_up_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_ROOM", 10)
    sink = Sink()
    with caplog.at_level(logging.ERROR):
        told(sink, 500, open_gate=False, patience=0.05)  # would never come back
    assert [r.getMessage() for r in caplog.records] == [
        "tracker X is 10 points behind; points are dropped; training goes on",
        "tracker X does not come to an end; its last points are lost; training goes on",
    ]
    sink.gate.set()


def test_one_that_comes_back_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """A server that was restarted loses what was told meanwhile, and no more."""
    sink = Sink(broken=("log",))
    sink.gate.set()
    out = Outlet(sink)
    out.start(1)
    out.put(point(1))
    while "loses points" not in caplog.text:
        time.sleep(0.01)
    sink.broken = ()
    out.put(point(2))
    out.finish()
    out.wait(time.monotonic() + 30)
    assert sink.seen == ["from 1", 2, "end"]


def test_what_never_began_is_not_waited_for() -> None:
    out = Outlet(Sink())
    out.put(point(1))
    out.finish()
    out.wait(time.monotonic() + 30)
