"""When the supervisor kills its children: a table of situations."""

import time

import pytest

from finetune_trainer.pod import watchdog
from finetune_trainer.pod.state import PodState
from finetune_trainer.pod.watchdog import Limits

LIMITS = Limits(progress_deadline=1800, grace_period=300)

# stage, seconds since SIGTERM (None: never), seconds without activity -> exit code, message
SITUATIONS: dict[str, tuple[str, float | None, float, int | None, str]] = {
    "training": ("Training", None, 500, None, ""),
    "no activity": ("Training", None, 1801, 89, "progressDeadlineSeconds is 1800"),
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
def state() -> PodState:
    return PodState("uid-1", attempt=1, role="worker", worker_index=0)


@pytest.mark.parametrize(
    ("stage", "stopped", "idle", "code", "message"), SITUATIONS.values(), ids=SITUATIONS.keys()
)
def test_children_that_cannot_finish_are_killed(
    state: PodState, stage: str, stopped: float | None, idle: float, code: int | None, message: str
) -> None:
    now = time.monotonic()
    state.process("rank 0", 0, {"activity": 1, "stage": stage})
    state.active_at = now - idle
    found = watchdog.verdict(state, LIMITS, None if stopped is None else now - stopped, now)
    assert (found.code if found else None) == code
    if found:
        assert message in found.message


def test_a_prepare_pod_that_was_stopped_is_not_killed(state: PodState) -> None:
    state.role = "prepare"
    state.process("prepare", None, {"activity": 1, "stage": "PreparingData"})
    now = time.monotonic()
    assert watchdog.verdict(state, LIMITS, now - 290, now + 200) is None


@pytest.mark.parametrize(("code", "overrides"), [(137, True), (88, True), (87, False), (86, False)])
def test_a_verdict_overrides_only_exit_codes_that_it_caused(code: int, overrides: bool) -> None:
    assert watchdog.overrides(code) is overrides
