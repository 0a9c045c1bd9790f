"""When the supervisor gives up on its children: a table of moments."""

import time
from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.pod import watchdog
from finetune_trainer.pod.state import PodState
from tests.trainer.gang import make_job

# stage, seconds since SIGTERM (None: never), seconds since something moved -> exit code, words
MOMENTS: dict[str, tuple[str, float | None, float, int | None, str]] = {
    "training": ("Training", None, 500, None, ""),
    "nothing moves": ("Training", None, 1801, 89, "progressDeadlineSeconds is 1800"),
    "a step after SIGTERM": ("Training", 100, 19, None, ""),
    "no step after SIGTERM": ("Training", 125, 130, 88, "no step was finished after SIGTERM"),
    "no batch after SIGTERM": ("Evaluating", 130, 200, 88, "no step was finished after SIGTERM"),
    "a long save after SIGTERM": ("Checkpointing", 200, 200, None, ""),
    "a save beyond the grace period": ("Checkpointing", 291, 1, 89, "GracePeriodSeconds (300)"),
    "loading after SIGTERM": ("LoadingModel", 200, 200, None, ""),
    "loading beyond the grace period": ("LoadingModel", 291, 1, 89, "GracePeriodSeconds (300)"),
    "exporting after SIGTERM": ("Exporting", 200, 200, None, ""),
}


@pytest.fixture
def state(tmp_path: Path) -> PodState:
    config = make_job(tmp_path).config | {"role": "worker", "attempt": 1, "mounts": {}}
    return PodState(RunConfig.model_validate(config), 0)


@pytest.mark.parametrize(
    ("stage", "stopped", "quiet", "code", "words"), MOMENTS.values(), ids=MOMENTS.keys()
)
def test_verdicts(
    state: PodState, stage: str, stopped: float | None, quiet: float, code: int | None, words: str
) -> None:
    now = time.monotonic()
    state.hear("rank 0", 0, {"activity": 1, "stage": stage})
    state.moved_at = now - quiet
    found = watchdog.verdict(state, None if stopped is None else now - stopped, now)
    assert (found.code if found else None) == code
    if found:
        assert words in found.message


def test_a_preparation_that_is_stopped_ends_by_itself(state: PodState) -> None:
    state.config = state.config.replace(role="prepare")
    state.hear("prepare", None, {"activity": 1, "stage": "PreparingData"})
    now = time.monotonic()
    assert watchdog.verdict(state, now - 290, now + 200) is None


@pytest.mark.parametrize(("code", "ours"), [(137, True), (88, True), (87, False), (86, False)])
def test_our_verdict_explains_what_it_caused_and_nothing_else(code: int, ours: bool) -> None:
    assert watchdog.overrides(code) is ours
