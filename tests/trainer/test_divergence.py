"""When a run has diverged: streaks, shares and spikes."""

import pytest

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.training.divergence import Divergence

# finite steps are ., others x -> number of the step that ends the run, the last good one, words
RUNS: dict[str, tuple[str, int | None, int | None, str]] = {
    "all is well": ("....", None, None, ""),
    "single ones are left out": (".x.xx.x.", None, None, ""),
    "three in a row": ("..xxx.", 5, 1, "not finite in 3 steps up to step 5"),
    "from the first step on": ("xxx", 3, -1, "not finite in 3 steps up to step 3"),
    "too many of the last 500": ("x." * 6, 11, 9, "not finite in 6 of the last 11 steps"),
    "few enough of the last 500": (("x" + "." * 99) * 10, None, None, ""),
}


def feed(
    divergence: Divergence, steps: str, losses: list[float] | None = None
) -> tuple[int | None, str]:
    """Number of the step that is one too many, and what is said about it."""
    for number, step in enumerate(steps, 1):
        loss = losses[number - 1] if losses else 2.0
        try:
            divergence.take_in(number, loss, finite=step == ".")
        except TrainerError as error:
            return number, error.message
        assert divergence.in_doubt == (step == "x")
    return None, ""


@pytest.mark.parametrize(("steps", "end", "good", "words"), RUNS.values(), ids=RUNS.keys())
def test_steps_that_are_not_finite(
    steps: str, end: int | None, good: int | None, words: str
) -> None:
    divergence = Divergence(learning_rate=0.5)
    found, said = feed(divergence, steps)
    assert found == end
    assert divergence.skipped == steps[:end].count("x")
    if found:
        assert divergence.last_good(found) == good
        assert words in said
        assert "; lower training.learningRate (now 0.5)" in said


# losses -> step that ends the run, the last good one
SPIKES: dict[str, tuple[list[float], int | None, int | None]] = {
    "it stays high": ([2.0] * 30 + [6.5] * 25, 50, 29),
    "it comes back": ([2.0] * 30 + [6.5] * 19 + [2.0] + [6.5] * 19, None, None),
    "not high enough": ([2.0] * 30 + [5.9] * 40, None, None),
    "as soon as it can be told": ([2.0] * 19 + [6.5] * 30, 40, 19),
    "near zero": ([0.01] * 30 + [0.2] * 40, None, None),
    "it learns": ([8.0 * 0.97**step for step in range(300)], None, None),
}


@pytest.mark.parametrize(("losses", "end", "good"), SPIKES.values(), ids=SPIKES.keys())
def test_losses_far_above_the_usual(losses: list[float], end: int | None, good: int | None) -> None:
    divergence = Divergence(learning_rate=0.5)
    found, said = feed(divergence, "." * len(losses), losses)
    assert found == end
    if found:
        assert divergence.last_good(found) == good
        assert "3 x its median (2.0000) for 20 steps" in said
