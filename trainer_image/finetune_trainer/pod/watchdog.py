"""When the supervisor kills children that make no progress or do not end in time (pure)."""

import signal
from dataclasses import dataclass

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.grace import result_reserve
from finetune_trainer.pod.state import Failure, PodState

_SHORTEST_WAIT = 20.0  # s without a step after SIGTERM, at least
_UNKNOWN_STEP = 60.0  # s; assumed duration of a step before one was measured
# Writing and reading checkpoints takes as long as storage needs, so steps are no measure for it.
_BOUND_BY_STORAGE = ("Checkpointing", "LoadingModel")


@dataclass(frozen=True)
class Limits:
    """The limits that the job's runPolicy sets, in seconds."""

    progress_deadline: int
    grace_period: int


def verdict(
    state: PodState, limits: Limits, terminated_at: float | None, now: float
) -> Failure | None:
    """Return why the children must be killed, or None while they may go on.

    `terminated_at` is the time of SIGTERM, or None. Times are those of time.monotonic().
    """
    idle = now - state.active_at
    if idle > limits.progress_deadline:
        text = (
            f"no work was completed for {idle:.0f} s in stage {state.stage} "
            f"(runPolicy.progressDeadlineSeconds is {limits.progress_deadline})"
            f"{state.most_silent_rank(now)}"
        )
        return Failure(int(ExitCode.HANG), reasons.HANG, text)
    if terminated_at is None or state.role == "prepare":
        return None
    if state.stage in _BOUND_BY_STORAGE:
        return _grace_is_over(state, limits, now - terminated_at)
    # After SIGTERM a rank whose peer has disappeared waits in a collective for ever.
    idle = now - max(terminated_at, state.active_at)
    if state.stage != "Exporting" and idle > max(_SHORTEST_WAIT, 2 * _step_seconds(state)):
        text = "no step was finished after SIGTERM; another worker must have disappeared"
        return Failure(int(ExitCode.PEER_LOST), reasons.PEER_LOST, text)
    return None


def overrides(code: int) -> bool:
    """Return whether a verdict, and not the child's exit code, names the cause.

    That is so if the child was killed because of the verdict, or lost a peer, whose supervisor may
    have come to the same verdict a moment earlier.
    """
    return code in (128 + signal.SIGKILL, ExitCode.PEER_LOST)


def _grace_is_over(state: PodState, limits: Limits, waited: float) -> Failure | None:
    """Return a verdict shortly before the kubelet kills the pod, so that a result can be written.

    `waited` is the number of seconds since SIGTERM.
    """
    grace = limits.grace_period
    if waited < grace - result_reserve(grace):
        return None
    text = (
        f"still in stage {state.stage} {waited:.0f} s after SIGTERM, and the pod is killed after "
        f"terminationGracePeriodSeconds ({grace}); older checkpoints are intact; raise "
        "runPolicy.terminationGracePeriodSeconds, or save to faster storage"
    )
    return Failure(int(ExitCode.HANG), reasons.HANG, text)


def _step_seconds(state: PodState) -> float:
    progress = state.progress
    if progress is None or not progress.eta_seconds:
        return _UNKNOWN_STEP
    return progress.eta_seconds / max(1, progress.total_steps - progress.step)
