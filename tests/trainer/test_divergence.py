"""When a run has diverged: streaks of steps that were not finite."""

import pytest

from finetune_trainer.divergence import Divergence

# finite steps are ., others x -> number of the step that ends the run, the last good one
RUNS: dict[str, tuple[bool, str, int | None, int | None]] = {
    "all is well": (False, "....", None, None),
    "single ones are left out": (False, ".x.xx.x.", None, None),
    "three in a row": (False, "..xxx.", 5, 1),
    "from the first step on": (False, "xxx", 3, -1),
    "fp32 is ruined at once": (True, "...x", 4, 2),
}


@pytest.mark.parametrize(("fp32", "steps", "end", "good"), RUNS.values(), ids=RUNS.keys())
def test_streaks(fp32: bool, steps: str, end: int | None, good: int | None) -> None:
    divergence = Divergence(learning_rate=0.5, fp32=fp32)
    for number, step in enumerate(steps, 1):
        if divergence.is_too_much(step == "."):
            assert (number, divergence.last_good(number)) == (end, good)
            error = divergence.ended(number)
            assert error.code == 86
            assert f"steps up to step {end}; lower training.learningRate (now 0.5)" in error.message
            return
        assert divergence.in_doubt == (step == "x")
    assert end is None
    assert divergence.skipped == steps.count("x")
