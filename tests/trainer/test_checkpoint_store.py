"""Which checkpoints are used, which are skipped and why, and which are deleted and why."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.checkpoint.retention import Retention
from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.training.divergence import Divergence
from tests.trainer.checkpoints import DIGEST, flip_a_byte, make_paths, write_checkpoint
from tests.trainer.silent import SilentReporter

RANK_FILE = "rank-00000-of-00001.safetensors"


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return make_paths(tmp_path)


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "manifest cut short": (store.MANIFEST, shorten, "has no readable manifest"),
    "manifest empty": (store.MANIFEST, lambda f: f.write_text(""), "has no readable manifest"),
    "manifest of other fields": (
        store.MANIFEST,
        lambda f: f.write_text('{"step": 4}'),
        "has no readable manifest",
    ),
    "manifest absent": (store.MANIFEST, Path.unlink, "was never finished"),
    "file cut short": (RANK_FILE, shorten, f"/{RANK_FILE} is absent or has another size"),
    "file absent": (RANK_FILE, Path.unlink, f"/{RANK_FILE} is absent or has another size"),
    "folder instead of a file": (RANK_FILE, replace_by_folder, f"/{RANK_FILE} is absent or has"),
    "flipped byte": (RANK_FILE, flip_a_byte, f"/{RANK_FILE} does not match its checksum"),
}


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_skipped_and_logged(
    paths: RunPaths,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    before = write_checkpoint(paths, 2)
    newest = write_checkpoint(paths, 4)
    damage(newest / file)
    found = store.newest_valid(paths, DIGEST)
    assert found is not None
    assert (found[0], found[1].step) == (before, 2)
    assert f"{newest.name}" in caplog.text
    assert message in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_the_newest_valid_checkpoint_is_used_without_a_log_line(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(paths, 2)
    newest = write_checkpoint(paths, 10)
    found = store.newest_valid(paths, DIGEST)
    assert found is not None
    assert found[0] == newest
    assert not caplog.records


def test_of_two_checkpoints_of_a_step_the_later_attempts_is_used(paths: RunPaths) -> None:
    write_checkpoint(paths, 4, epoch=1)
    newest = write_checkpoint(paths, 4, epoch=2)
    found = store.newest_valid(paths, DIGEST)
    assert found is not None
    assert found[0] == newest


def test_a_checkpoint_of_another_run_is_skipped(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(paths, 2)
    write_checkpoint(paths, 4, run_digest="another")
    found = store.newest_valid(paths, DIGEST)
    assert found is not None
    assert found[1].step == 2
    assert "step-00000004-e0001 belongs to another run" in caplog.text


def test_a_run_without_checkpoints_has_no_newest_one(paths: RunPaths) -> None:
    assert store.newest_valid(paths, DIGEST) is None
    assert store.records(paths) == []


def test_a_damaged_checkpoint_loses_its_verified_mark(paths: RunPaths) -> None:
    write_checkpoint(paths, 2)
    flip_a_byte(write_checkpoint(paths, 4) / RANK_FILE)
    store.newest_valid(paths, DIGEST)
    assert [(r.step, r.verified) for r in store.records(paths)] == [(4, False), (2, True)]


def test_checkpoints_that_are_marked_as_diverged_are_not_used(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 6):
        write_checkpoint(paths, step)
    store.mark_diverged(paths, 3)
    found = store.newest_valid(paths, DIGEST)
    assert found is not None
    assert found[1].step == 2
    assert "step-00000006-e0001 holds weights with which the run diverged; trying" in caplog.text
    assert [record.step for record in store.records(paths)] == [2]


def test_records_have_size_and_location(paths: RunPaths) -> None:
    folder = write_checkpoint(paths, 4, epoch=3)
    record = store.records(paths)[0]
    assert record.location == "pvc://w/run/checkpoints/step-00000004-e0003"
    assert record.size_bytes == (folder / RANK_FILE).stat().st_size
    assert record.verified


def steps_left(paths: RunPaths, keep_last: int, epoch: int) -> list[str]:
    for deletion in list(store.to_delete(paths, keep_last, epoch)):
        store.delete(paths, deletion)
    return sorted(path.name[-8:] for path in paths.checkpoints.iterdir())


def test_retention_keeps_the_newest_checkpoints(paths: RunPaths) -> None:
    for step in (2, 4, 6):
        write_checkpoint(paths, step)
    assert steps_left(paths, 2, 1) == ["04-e0001", "06-e0001"]


def test_retention_never_deletes_the_newest_verified_checkpoint(paths: RunPaths) -> None:
    write_checkpoint(paths, 2)
    write_checkpoint(paths, 4, verified=False)
    assert steps_left(paths, 1, 1) == ["02-e0001", "04-e0001"]


def test_retention_does_not_prefer_a_damaged_checkpoint(paths: RunPaths) -> None:
    """An attempt resumes before a damaged checkpoint, and is stopped before it reaches its step."""
    write_checkpoint(paths, 2)
    flip_a_byte(write_checkpoint(paths, 6) / RANK_FILE)
    store.newest_valid(paths, DIGEST)
    write_checkpoint(paths, 5, epoch=2)
    steps_left(paths, 1, 2)
    found = store.newest_valid(paths, DIGEST)
    assert found is not None
    assert found[1].step == 5


def test_retention_deletes_unpublished_folders_of_earlier_attempts_only(paths: RunPaths) -> None:
    write_checkpoint(paths, 2)
    for epoch in (1, 2):
        (write_checkpoint(paths, 4, epoch=epoch) / store.MANIFEST).unlink()
    assert steps_left(paths, 2, 2) == ["02-e0001", "04-e0002"]


# interval, keepLast -> steps of the checkpoints that are left after a spike, which began at step
# 101, has ended the run at step 120
SPIKES: dict[str, tuple[int, int, list[int]]] = {
    "a save every 10 steps": (10, 2, [90]),
    "the newest one only": (10, 1, [90]),
    "a save every step": (1, 2, [99]),
    "five are kept": (10, 5, [90, 80, 70]),
    "no save during the spike": (50, 2, [50]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("interval", "keep_last", "left"), SPIKES.values(), ids=SPIKES.keys())
def test_a_spike_leaves_a_checkpoint_from_before_it(
    paths: RunPaths, interval: int, keep_last: int, left: list[int]
) -> None:
    """As in the loop, a checkpoint is accepted after the loss of its weights is known."""
    storage = RunStorage(paths, "uid-1", DIGEST, attempt=1, fence_epoch=1)
    retention = Retention(storage, keep_last, SilentReporter())
    divergence = Divergence(learning_rate=1e-3)
    for step in range(1, 120):
        divergence.observe(step, 2.0 if step <= 100 else 9.0, finite=True)
        suspected = divergence.is_suspected
        retention.last_good = divergence.last_good(step) if suspected else None
        if (step - 1) % interval == 0 and step > 1:
            retention.accept(write_checkpoint(paths, step - 1, verified=False))
            assert len(store.published(paths)) <= max(2, keep_last)
    with pytest.raises(TrainerError, match="for 20 steps, 9"):
        divergence.observe(120, 9.0, finite=True)
    retention.mark_diverged(divergence.last_good(120))
    assert [manifest.step for _, manifest in store.published(paths)] == left


def test_a_spike_that_ends_keeps_no_additional_checkpoint(paths: RunPaths) -> None:
    for step in (2, 4, 6):
        write_checkpoint(paths, step)
    assert [d.folder.name[-8:] for d in store.to_delete(paths, 2, 1, 3)] == ["04-e0001"]
    assert steps_left(paths, 2, 1) == ["04-e0001", "06-e0001"]


def deletions_logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.INFO and "deleted" in record.getMessage()
    ]


def test_each_deletion_is_logged_once_with_step_location_and_reason(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 6, 8):
        write_checkpoint(paths, step)
    store.mark_diverged(paths, 6)
    (write_checkpoint(paths, 5) / store.MANIFEST).unlink()
    with caplog.at_level(logging.INFO):
        steps_left(paths, 2, 2)
        steps_left(paths, 2, 2)
    where = "pvc://w/run/checkpoints"
    assert sorted(deletions_logged(caplog)) == [
        f"deleted the checkpoint of step 2 ({where}/step-00000002-e0001): superseded by the one of "
        "step 6",
        f"deleted the checkpoint of step 5 ({where}/step-00000005-e0001): incomplete",
        f"deleted the checkpoint of step 8 ({where}/step-00000008-e0001): the run diverged",
    ]


def test_retention_ignores_other_files_and_folders(paths: RunPaths) -> None:
    write_checkpoint(paths, 2)
    (paths.checkpoints / "notes.txt").write_text("mine")
    (paths.checkpoints / "step-old").mkdir()
    assert steps_left(paths, 1, 9) == ["02-e0001", "otes.txt", "step-old"]


def test_any_range_can_be_read_from_the_slices_of_any_world_size(paths: RunPaths) -> None:
    values = torch.arange(10.0)
    slices = [
        {"w@0|master": values[:3].clone(), "b@0|master": torch.ones(2)},
        {"w@3|master": values[3:4].clone()},
        {"w@4|master": values[4:].clone()},
    ]
    write_checkpoint(paths, 7, slices=slices)
    found = store.newest_valid(paths, DIGEST)
    assert found is not None
    reader = CheckpointReader(*found)
    assert (reader.names(), reader.adam_step) == (["b", "w"], 7)
    for begin in range(10):
        for end in range(begin + 1, 11):
            part = reader.read("w", "master", begin, end - begin)
            assert torch.equal(part, values[begin:end])


def test_a_range_with_missing_elements_is_an_error(paths: RunPaths) -> None:
    slices = [{"w@0|master": torch.zeros(3)}, {"w@5|master": torch.zeros(3)}]
    write_checkpoint(paths, 2, slices=slices)
    found = store.newest_valid(paths, DIGEST)
    assert found is not None
    with pytest.raises(ValueError, match="w master: 6 of 8 elements from 0"):
        CheckpointReader(*found).read("w", "master", 0, 8)
