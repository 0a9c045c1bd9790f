"""Watches child processes until all have ended, and finds the cause of a failure.

`verdict` decides when children that make no progress or do not end in time are killed (pure).
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode, meaning
from finetune_trainer.common.stop_signal import REMAINING_RANKS_SECONDS, StopSignal, result_reserve
from finetune_trainer.pod import crashes, processes
from finetune_trainer.pod.processes import Child
from finetune_trainer.pod.state import Failure, PodState

_SHORTEST_WAIT = 20.0  # s without a step after SIGTERM, at least
_UNKNOWN_STEP = 60.0  # s; assumed duration of a step before one was measured
# Writing and reading checkpoints takes as long as storage needs, so steps are no measure for it.
_BOUND_BY_STORAGE = ("Checkpointing", "LoadingModel")
_log = logging.getLogger("supervisor")
_STDERR_LINES = 8  # at the end of the message about a crash


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


class Watch:
    """Watches the children of one pod. Remembers which it has killed, and why."""

    def __init__(self, state: PodState, limits: Limits, stop: StopSignal) -> None:
        self._state, self._limits, self._stop = state, limits, stop
        self._verdict: Failure | None = None
        self._killed: set[str] = set()

    def run(self, children: list[Child], each_time: Callable[[float], None]) -> None:
        """Watch children until all have ended, calling `each_time(now)` several times a second.

        Passes SIGTERM on. Kills the children if the watchdog demands it, and those that still run
        some seconds after the first failure.
        """
        failed_at: float | None = None
        terminated = False

        def all_ended() -> bool:
            nonlocal failed_at, terminated
            if self._stop.at is not None and not terminated:
                terminated = True
                for child in children:
                    child.terminate()
            now = time.monotonic()
            codes = [child.code() for child in children]
            if failed_at is None and any(code not in (None, 0) for code in codes):
                failed_at = now
            if failed_at is not None and now - failed_at > REMAINING_RANKS_SECONDS:
                self._kill(children)
            found = verdict(self._state, self._limits, self._stop.at, now)
            if self._verdict is None and found:
                _log.error("%s; killing the processes of this pod", found.message)
                self._verdict = found
                self._kill(children)
            each_time(now)
            if os.getpid() == 1:
                processes.reap_orphans(children)
            return all(code is not None for code in codes)

        processes.receive_until(all_ended, children, self._receive)
        for child in children:
            child.finish()

    def cause(self, children: list[Child]) -> Child:
        """Return the child whose end explains the pod's end.

        That is one that failed by itself, else one that lost a peer, else one that was killed, else
        any.
        """

        def order(child: Child) -> int:
            if child.code() == 0:
                return 3
            if child.name in self._killed:
                return 2
            crash = crashes.failure_of(child.code() or 0, child.stderr)
            return 1 if ExitCode.PEER_LOST in (child.code(), crash and crash.code) else 0

        return min(children, key=order)

    def ending(self, child: Child) -> tuple[int, Failure | None]:
        """Return the exit code that a child's end gives the pod, and why it failed, if it did."""
        code = child.code() or 0
        crash = crashes.failure_of(code, child.stderr)
        code = crash.code if crash else code
        if self._verdict and overrides(code):
            return self._verdict.code, self._verdict
        if self._stop.at is not None and code == 128 + signal.SIGTERM:
            # The process did not handle SIGTERM yet, because it had nothing to save.
            code = int(ExitCode.STOPPED)
            return code, Failure(code, reasons.STOPPED, stopped_message(child.name))
        failure = self._state.failures.get(child.name) or crash
        if failure is None and code:
            tail = "\n".join(child.stderr.splitlines()[-_STDERR_LINES:])
            text = f"{child.name} ended with {_describe(code)}" + (f":\n{tail}" if tail else "")
            failure = Failure(code, meaning(code).reason, text)
        return code, failure

    def _receive(self, child: Child, message: dict[str, Any]) -> None:
        self._state.process(child.name, child.rank, message)

    def _kill(self, children: list[Child]) -> None:
        for child in children:
            if child.code() is None:
                self._killed.add(child.name)
            child.kill()


def stopped_message(name: str) -> str:
    """Return the message of a process that was stopped before it had anything to save."""
    return f"{name} was stopped; nothing is lost, the next attempt repeats it"


def _describe(code: int) -> str:
    if code > 128:
        try:
            return f"signal {signal.Signals(code - 128).name}"
        except ValueError:
            return f"exit code {code}"
    return f"exit code {code}"
