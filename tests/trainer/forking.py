"""Runs a supervisor in a fork of the nursery. Its children are forked as well, not executed.

Unlike in a pod, all libraries are already imported. Processes, pipes, signals and exit codes are
real.
"""

import atexit
import contextlib
import ctypes
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from finetune_trainer.pod import processes

_PR_SET_NAME = 15


def become_pod(environment: dict[str, str]) -> NoReturn:
    """Run `python -m finetune_trainer` in this environment, and end the process."""
    processes.subprocess = _Forking  # type: ignore[attr-defined]
    _run(["finetune_trainer"], environment)


class _Forked:
    """The part of subprocess.Popen that `processes.Child` uses."""

    def __init__(
        self,
        command: list[str],
        env: dict[str, str],
        pass_fds: list[int],
        stderr: int,
        start_new_session: bool,
        preexec_fn: Callable[[], None],
    ) -> None:
        (python, option), module = command[:2], command[2:]
        assert (python, option, stderr) == (sys.executable, "-m", subprocess.PIPE)
        assert start_new_session
        reader, writer = os.pipe()
        begun, begins = os.pipe()
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            preexec_fn()
            os.dup2(writer, 2)
            _close_all_but({0, 1, 2, *pass_fds})  # closing `begins` shows that setsid was called
            _run(module, env)
        os.close(writer)
        os.close(begins)
        os.read(begun, 1)
        os.close(begun)
        self.stderr = os.fdopen(reader, "rb")

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self) -> int:
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class _Forking:
    """The part of the module subprocess that `processes` uses."""

    Popen, PIPE = _Forked, subprocess.PIPE


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(int(name))


def _run(module: list[str], environment: dict[str, str]) -> NoReturn:
    """Run a module as a new interpreter would, and end the process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(module)
    # The command line is still the nursery's, so tests recognize the process by this name.
    name = module[0].rpartition(".")[2].encode()
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)
    os._exit(_code_of(module[0]))


def _code_of(module: str) -> int:
    code: Any
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 0 if code is None else 1
