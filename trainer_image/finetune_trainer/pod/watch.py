"""Watching child processes until all have ended, and finding the cause of a failure."""

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode, meaning
from finetune_trainer.common.grace import REMAINING_RANKS_SECONDS
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.pod import processes, watchdog
from finetune_trainer.pod.processes import Child
from finetune_trainer.pod.state import Failure, PodState
from finetune_trainer.pod.watchdog import Limits

_log = logging.getLogger("supervisor")
_STDERR_LINES = 8  # at the end of the message about a crash


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
            found = watchdog.verdict(self._state, self._limits, self._stop.at, now)
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
            return 1 if child.code() == ExitCode.PEER_LOST else 0

        return min(children, key=order)

    def ending(self, child: Child) -> tuple[int, Failure | None]:
        """Return the exit code that a child's end gives the pod, and why it failed, if it did."""
        code = child.code() or 0
        if self._verdict and watchdog.overrides(code):
            return self._verdict.code, self._verdict
        if self._stop.at is not None and code == 128 + signal.SIGTERM:
            # The process did not handle SIGTERM yet, because it had nothing to save.
            code = int(ExitCode.STOPPED)
            return code, Failure(code, reasons.STOPPED, stopped_message(child.name))
        failure = self._state.failures.get(child.name)
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
