"""The test's end of the nursery: starts pods and ranks, and asks how they ended."""

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

# What libraries read once, when they are loaded, as the supervisor gives it to its children.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
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
    """The process that pods and ranks are forked from."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
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
        """Process id of a new pod or rank."""
        return int(self._ask(request)["pid"])

    def pod(self, environment: dict[str, str], log: Path, slow: float = 0) -> "Process":
        """A supervisor in that environment; each write of a checkpoint takes `slow` seconds."""
        return Process(self, self.start(pod=environment, log=str(log), slow=slow))

    def wait(self, pid: int) -> int:
        """Its exit code, as a shell gives it."""
        code = int(self._ask({"wait": pid})["code"])
        return 128 - code if code < 0 else code

    def poll(self, pid: int) -> int | None:
        """Its exit code, as Popen gives it; None while it runs."""
        code: int | None = self._ask({"poll": pid})["code"]
        return code

    def close(self) -> None:
        """No pod or rank outlives it."""
        self._process.kill()
        self._process.communicate()  # closes its pipes, too

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._turn:
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
    """This test process's own, made when it is first needed."""
    made = Nursery()
    atexit.register(made.close)
    return made


class Process:
    """A pod of a nursery, as subprocess.Popen would show it."""

    def __init__(self, parent: Nursery, pid: int) -> None:
        self._parent, self.pid = parent, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit code; None while it runs."""
        if self.returncode is None:
            self.returncode = self._parent.poll(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code; TimeoutExpired when there is none after `timeout` seconds."""
        deadline = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"pod {self.pid}", timeout or 0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)
