"""The history of validation losses, and what is derived from it."""

import logging
from typing import cast

import pytest
import torch

from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.prepared import Rows
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.run_dir import evaluations, fence
from finetune_trainer.run_dir.evaluations import History, Measured
from finetune_trainer.training.evaluate import Evaluator
from tests.trainer import gang
from tests.trainer.checkpoints import make_paths
from tests.trainer.silent import SilentReporter


def history(*losses: float) -> History:
    """Return a history with losses at steps 0, 10, 20, ..."""
    measured = [Measured(step=10 * i, loss=loss) for i, loss in enumerate(losses)]
    return History(measured=measured)


def test_steps_that_are_repeated_are_measured_again() -> None:
    complete = history(3.0, 2.0, 1.0)
    assert complete.until(15).losses() == {0: 3.0, 10: 2.0}
    assert complete.until(15).with_loss(20, 1.5).losses() == {0: 3.0, 10: 2.0, 20: 1.5}
    assert complete.with_loss(20, 1.5).losses() == {0: 3.0, 10: 2.0, 20: 1.5}


@pytest.mark.parametrize(
    ("losses", "best_step", "improved"),
    [
        ((), None, False),
        ((3.0,), 0, False),
        ((3.0, 2.0), 10, True),
        ((3.0, 2.0, 2.0), 10, False),
        ((1.0, 2.0), 0, False),
        ((3.0, 2.5, 2.0), 20, True),
    ],
)
def test_the_best_evaluation_is_the_earliest_with_the_lowest_loss(
    losses: tuple[float, ...], best_step: int | None, improved: bool
) -> None:
    found = history(*losses)
    assert (found.best and found.best.step) == best_step
    assert found.improved is improved


@pytest.mark.parametrize(
    ("losses", "early_stopping", "stale"),
    [
        ((3.0, 2.0, 1.9), (1, 0.0), False),
        ((3.0, 2.0, 2.1), (1, 0.0), True),
        ((3.0, 2.0, 2.1), (2, 0.0), False),
        ((3.0, 2.0, 2.1, 2.0), (2, 0.0), True),
        ((3.0, 2.0, 1.99, 1.98), (2, 0.1), True),
        ((3.0, 2.0, 1.95, 1.89), (2, 0.1), False),  # improves slowly, but by enough in the end
        ((1.0, 2.0, 2.0), (2, 0.0), True),  # never better than the baseline
    ],
)
def test_early_stopping_counts_evaluations_without_improvement(
    losses: tuple[float, ...], early_stopping: tuple[int, float], stale: bool
) -> None:
    assert history(*losses).is_stale(*early_stopping) is stale


def test_the_summary_has_baseline_last_and_best() -> None:
    found = history(3.0, 1.5, 2.0).summary()
    assert (found.baseline, found.last, found.last_step) == (3.0, 2.0, 20)
    assert (found.best, found.best_step) == (1.5, 10)
    assert History().summary().last is None


def test_a_damaged_file_counts_as_an_empty_history(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_paths(tmp_path_factory.mktemp("run"))
    assert evaluations.read(paths) == History()
    paths.evaluations.write_text("{")
    with caplog.at_level(logging.ERROR):
        assert evaluations.read(paths) == History()
    assert "evaluations.json cannot be read" in caplog.text


def test_an_attempt_that_lost_the_storage_does_not_replace_the_history(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    paths = make_paths(tmp_path_factory.mktemp("run"))
    storage = RunStorage(paths, "uid", "digest", 1, fence.claim(paths, "uid", 1))
    ranks = Ranks(0, 1, torch.device("cpu"), None)
    engine, rows = cast(Engine, None), cast(Rows, None)
    evaluator = Evaluator(engine, rows, gang.make_plan(), ranks, storage, SilentReporter())
    evaluator._record(0, 3.0)
    fence.claim(paths, "uid", 2)
    with pytest.raises(TrainerError, match="attempt 2 owns the storage") as caught:
        evaluator._record(10, 2.0)
    assert caught.value.code == 79
    assert evaluations.read(paths) == history(3.0)
