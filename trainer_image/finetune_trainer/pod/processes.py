"""Child processes of the supervisor: how they start, send messages and end."""

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

from finetune_trainer.common.reporter import ENV_CHANNEL

_PR_SET_PDEATHSIG = 1
_STDERR_KEPT = 65536  # bytes
_libc = ctypes.CDLL(None)


class Child:
    """One process in its own process group, with a pipe for its messages.

    Its stderr is copied to the supervisor's, and the end of it is kept.
    """

    def __init__(self, name: str, rank: int | None, module: list[str], env: dict[str, str]) -> None:
        """Start `python -m` with `module` and its arguments, and with `env` added to our own."""
        self.name, self.rank = name, rank
        self._stderr = bytearray()
        reader, writer = os.pipe()
        self.reader = reader
        self._buffer = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**os.environ, **env, ENV_CHANNEL: str(writer), "PYTHONUNBUFFERED": "1"},
            pass_fds=[writer],
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        os.close(writer)
        os.set_blocking(reader, False)
        self._copier = threading.Thread(target=self._copy_stderr, daemon=True)
        self._copier.start()

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived. An incomplete line is kept for the next call."""
        try:
            while chunk := os.read(self.reader, 65536):
                self._buffer += chunk
        except BlockingIOError:
            pass
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def code(self) -> int | None:
        """Return the exit code as a shell shows it (128 + signal), or None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return 128 - code if code < 0 else code

    def terminate(self) -> None:
        """Send SIGTERM to the process, but not to its group."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to its process group, which includes its data workers."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def finish(self) -> None:
        """Wait for the process and for the end of its output, and close its pipe."""
        self.process.wait()
        self._copier.join(timeout=2)
        os.close(self.reader)

    @property
    def stderr(self) -> str:
        """The last 64 KiB that the process wrote to stderr."""
        return bytes(self._stderr).decode(errors="replace")

    def _copy_stderr(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
                self._stderr += line
                del self._stderr[:-_STDERR_KEPT]


def receive_until(
    done: Callable[[], bool],
    children: list[Child],
    receive: Callable[[Child, dict[str, Any]], None],
) -> None:
    """Pass all messages of the children to `receive` until `done` returns True.

    `done` is called about ten times a second, or more often while messages arrive.
    """
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.reader, selectors.EVENT_READ, child)
        while True:
            for key, _ in selector.select(timeout=0.1):
                for message in key.data.receive():
                    receive(key.data, message)
                if key.data.process.poll() is not None:
                    selector.unregister(key.fd)
            if done():
                break
    for child in children:
        if child.process.poll() is not None:
            for message in child.receive():
                receive(child, message)


def reap_orphans(children: list[Child]) -> None:
    """Reap orphaned processes, whose parent is process 1 of a container, except `children`."""
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
    """Make the kernel kill this process when the supervisor ends. Runs in the child before exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
