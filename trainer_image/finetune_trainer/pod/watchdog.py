"""How long the supervisor waits for children that seem to stand still, or that end (pure)."""

import signal

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.grace import result_reserve
from finetune_trainer.pod.state import Failure, PodState

_SHORTEST_STOP = 20.0  # s without a step after SIGTERM, at least
_UNKNOWN_STEP = 60.0  # s; before any step was timed
# Nothing there is measured in steps: writing or reading a checkpoint takes what storage takes.
_BY_STORAGE = ("Checkpointing", "LoadingModel")


def verdict(state: PodState, terminated_at: float | None, now: float) -> Failure | None:
    """Why the children must be killed; None while waiting may help."""
    limit, quiet = state.config.progress_deadline_seconds, now - state.moved_at
    if quiet > limit:
        text = (
            f"nothing was finished for {quiet:.0f} s in stage {state.stage} "
            f"(runPolicy.progressDeadlineSeconds is {limit}){state.silence(now)}"
        )
        return Failure(int(ExitCode.HANG), "Hang", text)
    if terminated_at is None or state.config.role == "prepare":
        return None
    if state.stage in _BY_STORAGE:
        return _grace_is_over(state, now - terminated_at)
    # After SIGTERM a rank whose peer is gone waits in a collective for ever.
    quiet = now - max(terminated_at, state.moved_at)
    if state.stage != "Exporting" and quiet > max(_SHORTEST_STOP, 2 * _step_seconds(state)):
        text = "no step was finished after SIGTERM; a peer must be gone"
        return Failure(int(ExitCode.PEER_LOST), "PeerLost", text)
    return None


def overrides(code: int) -> bool:
    """Whether our verdict, not the child's own end, is the cause.

    It died by our signal, or of a peer whose supervisor came to the same verdict a moment before.
    """
    return code in (128 + signal.SIGKILL, ExitCode.PEER_LOST)


def _grace_is_over(state: PodState, waited: float) -> Failure | None:
    """A moment before the kubelet kills the pod, so that a result is left."""
    grace = state.config.termination_grace_period_seconds
    if waited < grace - result_reserve(grace):
        return None
    text = (
        f"still in stage {state.stage} {waited:.0f} s after SIGTERM, and the pod is killed after "
        f"terminationGracePeriodSeconds ({grace}); the older checkpoints stand; raise "
        "runPolicy.terminationGracePeriodSeconds, or save to faster storage"
    )
    return Failure(int(ExitCode.HANG), "Hang", text)


def _step_seconds(state: PodState) -> float:
    progress = state.progress
    if progress is None or not progress.eta_seconds:
        return _UNKNOWN_STEP
    return progress.eta_seconds / max(1, progress.total_steps - progress.step)
