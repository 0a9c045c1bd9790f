"""When cyclic garbage is collected; in process."""

import gc
from collections.abc import Iterator

import pytest

from finetune_trainer.common import garbage_collection


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_garbage_is_collected_after_every_fiftieth_step_only() -> None:
    garbage_collection.hold()
    garbage_collection.freeze()
    collected: list[int] = []
    step = 0

    def record(phase: str, _: dict[str, int]) -> None:
        if phase == "stop":
            collected.append(step)

    gc.callbacks.append(record)
    try:
        for step in range(1, 102):
            for _ in range(1000):  # enough to start an automatic collection
                cycle: list[object] = []
                cycle.append(cycle)
            garbage_collection.after(step)
    finally:
        gc.callbacks.remove(record)
    assert collected == [50, 100]


def test_objects_that_exist_when_training_starts_are_never_scanned() -> None:
    garbage_collection.freeze()
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 1_000
