"""Event files on storage whose writes fail, as TensorBoard reads them."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune_trainer.tracking.event_file import EventFile


@contextmanager
def no_file_larger(size: int) -> Iterator[None]:
    """Make the kernel truncate a write at `size` and refuse the next one, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def test_a_full_disk_loses_only_the_points_of_that_time(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "job", 1)
    file.log(1, {"train/loss": 1.0, "train/gradNorm": 7.0})
    (path,) = (tmp_path / "job").iterdir()
    before = path.read_bytes()
    for room in (0, 1, 20):
        with no_file_larger(len(before) + room), pytest.raises(OSError, match="File too large"):
            file.log(2, {"train/loss": 2.0})
        assert path.read_bytes() == before
    file.log(3, {"train/loss": 3.0})
    file.close()
    assert scalars(tmp_path / "job", "train/loss") == [(1, 1.0), (3, 3.0)]
    assert scalars(tmp_path / "job", "train/gradNorm") == [(1, 7.0)]
