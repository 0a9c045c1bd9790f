"""Child processes of the supervisor: started, heard, ended."""

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from finetune_trainer.common.channel import ENV

_PR_SET_PDEATHSIG = 1
_KEPT = 65536  # bytes of stderr
_libc = ctypes.CDLL(None)


class Child:
    """One process in a group of its own, with a pipe to hear it and the end of its stderr."""

    def __init__(self, name: str, rank: int | None, module: list[str], env: dict[str, str]) -> None:
        self.name, self.rank = name, rank
        self._stderr = bytearray()
        reader, writer = os.pipe()
        self.reader = reader
        self._buffer = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**os.environ, **env, ENV: str(writer), "PYTHONUNBUFFERED": "1"},
            pass_fds=[writer],
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        os.close(writer)
        os.set_blocking(reader, False)
        self._pump = threading.Thread(target=self._copy_stderr, daemon=True)
        self._pump.start()

    def hear(self) -> list[dict[str, Any]]:
        """Whole lines that arrived."""
        try:
            while chunk := os.read(self.reader, 65536):
                self._buffer += chunk
        except BlockingIOError:
            pass
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def code(self) -> int | None:
        """Exit code as a shell gives it (128 + signal), None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return 128 - code if code < 0 else code

    def terminate(self) -> None:
        """SIGTERM to the process itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its whole group: its data workers too."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def finish(self) -> None:
        """Wait for the end of its output, and hear no more."""
        self.process.wait()
        self._pump.join(timeout=2)
        os.close(self.reader)

    @property
    def stderr(self) -> str:
        """The last 64 KB of what it wrote there."""
        return bytes(self._stderr).decode(errors="replace")

    def _copy_stderr(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
                self._stderr += line
                del self._stderr[:-_KEPT]


def wait_for(
    children: list[Child], tick: Callable[[], bool], hear: Callable[[Child, dict[str, Any]], None]
) -> None:
    """Hear the children until `tick` (called several times a second) says that it is over."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.reader, selectors.EVENT_READ, child)
        while True:
            for key, _ in selector.select(timeout=0.1):
                for message in key.data.hear():
                    hear(key.data, message)
                if key.data.process.poll() is not None:
                    selector.unregister(key.fd)
            if tick():
                break
    for child in children:
        if child.process.poll() is not None:
            for message in child.hear():
                hear(child, message)


def reap_orphans(children: list[Child]) -> None:
    """As process 1 of a container we inherit what others leave behind."""
    ours = {child.process.pid for child in children}
    try:
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)
    except ChildProcessError:
        return


def _die_with_parent() -> None:
    """Runs in the child before exec: no rank outlives its supervisor."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
