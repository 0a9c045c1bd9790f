"""When cyclic garbage is collected, in process."""

import gc
from collections.abc import Iterator

import pytest

from finetune_trainer.common import garbage_collection


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_collections_happen_after_every_fiftieth_step_and_never_else() -> None:
    garbage_collection.hold()
    garbage_collection.freeze()
    collected: list[int] = []
    step = 0

    def notice(phase: str, _: dict[str, int]) -> None:
        if phase == "stop":
            collected.append(step)

    gc.callbacks.append(notice)
    try:
        for step in range(1, 102):
            for _ in range(1000):  # more than make the collector start by itself
                cycle: list[object] = []
                cycle.append(cycle)
            garbage_collection.after(step)
    finally:
        gc.callbacks.remove(notice)
    assert collected == [50, 100]


def test_what_exists_when_training_starts_is_never_walked_over() -> None:
    garbage_collection.freeze()
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 1_000
