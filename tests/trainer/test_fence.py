"""The fence: which attempt may write to a run's storage."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer.checkpoints import make_paths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return make_paths(tmp_path)


def test_every_attempt_claims_the_next_epoch(paths: RunPaths) -> None:
    assert [fence.claim(paths, "uid", attempt) for attempt in (1, 2, 2, 5)] == [1, 2, 3, 4]


def test_epochs_are_compared_as_numbers(paths: RunPaths) -> None:
    for attempt in range(1, 12):
        fence.claim(paths, "uid", attempt)
    newest = fence.newest(paths)
    assert newest is not None
    assert newest.epoch == 11


def test_an_old_attempt_is_fenced(paths: RunPaths) -> None:
    epoch = fence.claim(paths, "uid", 1)
    fence.check(paths, epoch, 1)
    fence.claim(paths, "uid", 2)
    with pytest.raises(TrainerError) as error:
        fence.check(paths, epoch, 1)
    assert error.value.code == 79
    assert error.value.message == ("attempt 1 must not write any more: attempt 2 owns the storage")


def test_an_old_attempt_cannot_claim_again(paths: RunPaths) -> None:
    fence.claim(paths, "uid", 3)
    with pytest.raises(TrainerError) as error:
        fence.claim(paths, "uid", 2)
    assert error.value.code == 79


def test_claims_at_the_same_time_get_different_epochs(paths: RunPaths) -> None:
    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(lambda _: fence.claim(paths, "uid", 1), range(24)))
    assert sorted(epochs) == list(range(1, 25))
