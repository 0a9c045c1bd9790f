"""A client of the nursery: starts pods and ranks, and returns their exit codes."""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from finetune_local.machine import die_with_parent

# Variables that libraries read once, when they are loaded, as the supervisor sets them.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    "PYTHONUNBUFFERED": "1",
}


class Nursery:
    """The process from which pods and ranks are forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _ENVIRONMENT,
            preexec_fn=die_with_parent,
        )
        self._answer()

    def start(self, **request: Any) -> int:
        """Start a pod or a rank and return its process id."""
        return int(self._ask(request)["pid"])

    def pod(self, environment: dict[str, str], log: Path, slow: float = 0) -> "Process":
        """Start a supervisor. Each write of a checkpoint is delayed by `slow` seconds."""
        return Process(self, self.start(pod=environment, log=str(log), slow=slow))

    def wait(self, pid: int) -> int:
        """Wait for a process and return its exit code as a shell would."""
        code = int(self._ask({"wait": pid})["code"])
        return 128 - code if code < 0 else code

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a process as Popen would; None while it runs."""
        code: int | None = self._ask({"poll": pid})["code"]
        return code

    def close(self) -> None:
        """End the nursery, and with it all pods and ranks."""
        self._process.kill()
        self._process.communicate()  # also closes its pipes

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@functools.cache
def nursery() -> Nursery:
    """Return the nursery of this test process, which is started at the first call."""
    started = Nursery()
    atexit.register(started.close)
    return started


class Process:
    """A pod of a nursery, with the interface of subprocess.Popen."""

    def __init__(self, parent: Nursery, pid: int) -> None:
        self._parent, self.pid = parent, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""
        if self.returncode is None:
            self.returncode = self._parent.poll(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"pod {self.pid}", timeout or 0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process by SIGKILL."""
        self.send_signal(signal.SIGKILL)
