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


def test_a_list_of_files_that_is_out_of_date_does_not_hide_a_newer_attempt(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of a shared file system may list a folder as it was a minute ago."""
    epoch = fence.claim(paths, "uid", 1)
    before = sorted(paths.storage.iterdir())
    fence.claim(paths, "uid", 2)
    fence.claim(paths, "uid", 3)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(before))
    with pytest.raises(TrainerError, match="attempt 3 owns the storage"):
        fence.check(paths, epoch, 1)


def test_the_folder_is_refreshed_before_it_is_listed(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence.claim(paths, "uid", 1)
    calls: list[str] = []
    monkeypatch.setattr(fence, "refresh", lambda folder: calls.append(f"refresh {folder.name}"))
    listing = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *a: calls.append("list") or listing(*a))  # type: ignore[func-returns-value]
    fence.newest(paths)
    assert calls == ["refresh run", "list"]


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
