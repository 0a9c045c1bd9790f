"""When a run has diverged: by steps that are not finite, or by a spike of the loss."""

import pytest

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.training.divergence import Divergence

# "." is a finite step, "x" another one -> step that ends the run, last good step, text
RUNS: dict[str, tuple[str, int | None, int | None, str]] = {
    "all steps are finite": ("....", None, None, ""),
    "single ones are skipped": (".x.xx.x.", None, None, ""),
    "three in a row": ("..xxx.", 5, 1, "not finite in 3 steps up to step 5"),
    "from the first step on": ("xxx", 3, -1, "not finite in 3 steps up to step 3"),
    "too many of the last 500": ("x." * 6, 11, 9, "not finite in 6 of the last 11 steps"),
    "few enough of the last 500": (("x" + "." * 99) * 10, None, None, ""),
}


def feed(
    divergence: Divergence, steps: str, losses: list[float] | None = None
) -> tuple[int | None, str]:
    """Return the number of the step that ends the run, and the message."""
    for number, step in enumerate(steps, 1):
        loss = losses[number - 1] if losses else 2.0
        try:
            divergence.observe(number, loss, finite=step == ".")
        except TrainerError as error:
            return number, error.message
        assert divergence.in_doubt == (step == "x")
    return None, ""


@pytest.mark.parametrize(("steps", "end", "good", "text"), RUNS.values(), ids=RUNS.keys())
def test_too_many_steps_that_are_not_finite_end_the_run(
    steps: str, end: int | None, good: int | None, text: str
) -> None:
    divergence = Divergence(learning_rate=0.5)
    found, message = feed(divergence, steps)
    assert found == end
    assert divergence.skipped == steps[:end].count("x")
    if found:
        assert divergence.last_good(found) == good
        assert text in message
        assert "; lower training.learningRate (now 0.5)" in message


# losses -> step that ends the run, the last good one
SPIKES: dict[str, tuple[list[float], int | None, int | None]] = {
    "it stays high": ([2.0] * 30 + [6.5] * 25, 50, 29),
    "it comes back": ([2.0] * 30 + [6.5] * 19 + [2.0] + [6.5] * 19, None, None),
    "not high enough": ([2.0] * 30 + [5.9] * 40, None, None),
    "as soon as there is a median": ([2.0] * 19 + [6.5] * 30, 40, 19),
    "near zero": ([0.01] * 30 + [0.2] * 40, None, None),
    "it learns": ([8.0 * 0.97**step for step in range(300)], None, None),
}


@pytest.mark.parametrize(("losses", "end", "good"), SPIKES.values(), ids=SPIKES.keys())
def test_a_loss_far_above_its_median_ends_the_run(
    losses: list[float], end: int | None, good: int | None
) -> None:
    divergence = Divergence(learning_rate=0.5)
    found, message = feed(divergence, "." * len(losses), losses)
    assert found == end
    if found:
        assert divergence.last_good(found) == good
        assert "3 x its median (2.0000) for 20 steps" in message
