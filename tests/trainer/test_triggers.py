"""When it is time to save, to evaluate, to end."""

import time
from collections.abc import Callable

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.run_dir.evaluations import History, Measured
from finetune_trainer.training.consensus import Heard
from finetune_trainer.training.triggers import Turns
from tests.trainer import gang

Configured = Callable[..., RunConfig]


def heard(**changes: object) -> Heard:
    values = {"loss": 1.0, "stop": False, "save": False, "finished": 0, "failed": 0}
    return Heard(**(values | changes))  # type: ignore[arg-type]


def make(configured: Configured, **changes: object) -> Turns:
    checkpoints = {"storage": "pvc://w/runs/a", **changes.pop("checkpoints", {})}  # type: ignore[dict-item]
    return Turns(configured(checkpoints=checkpoints, **changes), gang.make_plan())


def test_by_steps(configured: Configured) -> None:
    turns = make(configured, checkpoints={"intervalSteps": 3})
    assert [step for step in range(1, 8) if turns.save_is_asked_for(step)] == [3, 6]
    assert not turns.is_time_to_save()  # no clock unless asked for


def test_by_the_clock_of_rank_0_and_heard_by_all(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = make(configured)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 899)
    assert not turns.is_time_to_save()
    monkeypatch.setattr(time, "monotonic", lambda: now + 901)
    assert turns.is_time_to_save()
    assert not turns.save_is_due
    turns.hear(heard(save=True))
    turns.hear(heard())
    assert turns.save_is_due
    turns.saved()
    assert not turns.save_is_due
    assert not turns.is_time_to_save()
    assert not turns.save_is_asked_for(900)


def test_a_stop_stays(configured: Configured) -> None:
    turns = make(configured)
    turns.hear(heard(stop=True))
    turns.hear(heard())
    assert turns.stop


def test_evaluations_and_early_stopping(configured: Configured) -> None:
    plain = make(configured)
    assert not plain.evaluation_is_due(10)
    stale = History(measured=[Measured(step=step, loss=2.0 + step) for step in range(5)])
    assert not plain.is_over(stale)
    early = {"intervalSteps": 5, "earlyStopping": {"patience": 4}}
    turns = make(configured, evaluation=early)
    assert [step for step in range(1, 12) if turns.evaluation_is_due(step)] == [5, 10]
    assert turns.is_over(stale)
    assert not turns.is_over(stale.until(3))


def test_the_end_is_by_steps_or_by_passes(configured: Configured) -> None:
    assert make(configured).end(rows=10) == 4 * gang.STEPS
    training = {"sequenceLength": 128, "epochs": 1.5}
    assert make(configured, training=training).end(rows=11) == 17
