"""When a checkpoint, an evaluation or the end of the run is due."""

import time
from collections.abc import Callable

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.run_dir.evaluations import History, Measured
from finetune_trainer.training.consensus import Agreed
from finetune_trainer.training.triggers import Triggers
from tests.trainer import gang

Configured = Callable[..., RunConfig]


def agreed(**changes: object) -> Agreed:
    values = {"loss": 1.0, "router_loss": 0.0, "stop": False, "save": False}
    values |= {"finished": 0, "failed": 0}
    return Agreed(**(values | changes))  # type: ignore[arg-type]


def make(configured: Configured, *, rank: int = 0, **changes: object) -> Triggers:
    checkpoints = {"storage": "pvc://w/runs/a", **changes.pop("checkpoints", {})}  # type: ignore[dict-item]
    config = configured(checkpoints=checkpoints, **changes)
    return Triggers(gang.STEPS, config.checkpoints, config.evaluation, rank)


def test_interval_steps_schedules_every_nth_step(configured: Configured) -> None:
    triggers = make(configured, checkpoints={"intervalSteps": 3})
    assert [step for step in range(1, 8) if triggers.save_is_scheduled(step)] == [3, 6]
    assert not triggers.interval_has_elapsed()  # no clock without intervalSeconds


def test_interval_seconds_follows_the_clock_of_rank_0(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    triggers, other = make(configured), make(configured, rank=1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 899)
    assert not triggers.interval_has_elapsed()
    monkeypatch.setattr(time, "monotonic", lambda: now + 901)
    assert triggers.interval_has_elapsed()
    assert not other.interval_has_elapsed()
    assert not triggers.save_is_due
    triggers.update(agreed(save=True))
    triggers.update(agreed())
    assert triggers.save_is_due
    triggers.save_began()
    assert not triggers.save_is_due
    assert not triggers.interval_has_elapsed()
    assert not triggers.save_is_scheduled(900)


def test_an_agreed_stop_is_final(configured: Configured) -> None:
    triggers = make(configured)
    triggers.update(agreed(stop=True))
    triggers.update(agreed())
    assert triggers.stop


def test_evaluations_and_early_stopping(configured: Configured) -> None:
    plain = make(configured)
    assert not plain.evaluation_is_due(10)
    stale = History(measured=[Measured(step=step, loss=2.0 + step) for step in range(5)])
    assert not plain.stops_early(stale)
    early = {"intervalSteps": 5, "earlyStopping": {"patience": 4}}
    triggers = make(configured, evaluation=early)
    assert [step for step in range(1, 12) if triggers.evaluation_is_due(step)] == [5, 10]
    assert triggers.stops_early(stale)
    assert not triggers.stops_early(stale.until(3))


def test_the_run_ends_after_its_last_step(configured: Configured) -> None:
    triggers = make(configured)
    assert not triggers.is_last(gang.STEPS - 1)
    assert triggers.is_last(gang.STEPS)
