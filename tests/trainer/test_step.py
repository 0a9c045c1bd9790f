"""The learning rate of each step, and the end of the run."""

from collections.abc import Callable

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.training.step import end_row, learning_rate
from tests.trainer import gang

# schedule, warm-up steps, minimum ratio -> the rates of all ten steps, with peak 1.0
TABLE = {
    "constant": ("Constant", 0, 0.1, [1.0] * 10),
    "constant after warm-up": ("Constant", 3, 0.1, [0.25, 0.5, 0.75] + [1.0] * 7),
    "linear": ("Linear", 0, 0.1, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    "linear to zero": ("Linear", 4, 0.0, [0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]),
    "cosine": (
        "Cosine",
        0,
        0.0,
        [1.0, 0.9698, 0.8830, 0.75, 0.5868, 0.4132, 0.25, 0.1170, 0.0302, 0.0],
    ),
    "cosine after warm-up": (
        "Cosine",
        5,
        0.1,
        [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0, 0.8682, 0.55, 0.2318, 0.1],
    ),
    "nothing but warm-up": ("Cosine", 10, 0.1, [n / 11 for n in range(1, 11)]),
}


@pytest.mark.parametrize(("schedule", "warmup", "ratio", "rates"), TABLE.values(), ids=TABLE.keys())
def test_learning_rate_follows_the_schedule(
    schedule: str, warmup: int, ratio: float, rates: list[float]
) -> None:
    found = [
        learning_rate(
            step,
            peak=1.0,
            total_steps=10,
            warmup_steps=warmup,
            schedule=schedule,  # type: ignore[arg-type]
            min_ratio=ratio,
        )
        for step in range(10)
    ]
    assert found == pytest.approx(rates, abs=5e-5)


def test_a_run_of_one_step_uses_the_peak() -> None:
    rate = learning_rate(
        0, peak=2.0, total_steps=1, warmup_steps=0, schedule="Cosine", min_ratio=0.1
    )
    assert rate == 2.0


def test_the_run_ends_after_max_steps_or_after_epochs(
    configured: Callable[..., RunConfig],
) -> None:
    plan = gang.make_plan()
    assert end_row(configured().training, plan, rows_per_epoch=10) == 4 * gang.STEPS
    training = configured(training={"sequenceLength": 128, "epochs": 1.5}).training
    assert end_row(training, plan, rows_per_epoch=11) == 17
