"""Runs one container for the agent: `python -I -S shim.py CONFIG`.

The shim creates the container's PID namespace and process 1, writes the container's output to the
log with the time of each line, and records in the container's folder how it ended. The agent sends
commands through stdin: T runs the hook preStop and then sends SIGTERM to the container, and K sends
SIGKILL. The end of the pipe
means that the agent has ended and also kills the container. Commands that come before the process
exists wait in the pipe.
"""

import json
import os
import select
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

_NEW_PIDS = 0x20000000
_CHUNK = 65536
_LINE_BYTES = 16384  # a longer line is split into parts, as in containerd
START_ERROR = 128


def main() -> None:
    """Run the container of the configuration until it ends."""
    config = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[1]).parent
    try:
        code, error = Shim(folder, _sandbox(), config).run()
    except OSError as os_error:
        code, error = START_ERROR, str(os_error)
    record_end(folder, code, error)


def _sandbox() -> ModuleType:
    # Python starts without site-packages, for speed, so the tree is not on the path.
    sys.path.append(str(Path(__file__).parents[2]))
    from finetune_local.node import sandbox

    return sandbox


class Shim:
    """Starts one container and serves it until it ends."""

    def __init__(self, folder: Path, sandbox: ModuleType, config: dict[str, Any]) -> None:
        self._folder, self._sandbox, self._config = folder, sandbox, config
        self._poll = select.poll()
        self._command_runs = False  # until then process 1 cannot handle signals
        self._terminated = False
        self._hook = 0  # the process that runs the hook preStop
        self._hook_end = -1  # the descriptor that becomes ready when it ends
        self._start_error = b""

    def run(self) -> tuple[int, str]:
        """Return the exit code of the container, and the error if its command did not start."""
        output, output_end = os.pipe()
        # The exec closes this pipe; anything written to it before that is an error.
        start_error, start_error_end = os.pipe()
        self._sandbox.unshare(_NEW_PIDS)
        self._child = os.fork()
        if self._child == 0:
            self._become_container(output_end, start_error_end)
        os.close(output_end)
        os.close(start_error_end)
        with LogWriter(self._folder / "log") as log:
            status = self._serve(output, start_error, log)
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        if self._terminated:
            code = 128 + signal.SIGTERM
        return code, self._start_error.decode(errors="replace")

    def _become_container(self, output: int, start_error: int) -> None:
        try:
            os.setsid()
            nothing = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                # Python ignores these signals, and exec would keep that.
                signal.signal(number, signal.SIG_DFL)
            self._sandbox.execute(self._config)
        except BaseException as error:
            os.write(start_error, f"{self._config['command'][0]}: {error}".encode()[:4096])
        finally:
            os._exit(START_ERROR)

    def _serve(self, output: int, start_error: int, log: "LogWriter") -> int:
        """Copy output and process commands until process 1 has ended; return its wait status.

        The kernel ends the rest of the namespace before it reports the end of process 1.
        """
        child = os.pidfd_open(self._child)
        for descriptor in (0, output, start_error, child):
            self._poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if start_error in ready:
                self._read_start_error(start_error)
            if 0 in ready:
                self._process_commands()
            if output in ready and not log.copy(output):
                self._poll.unregister(output)  # the container closed its output but still runs
            if self._hook_end in ready:
                self._process_end_of_hook()
            if child in ready:
                while log.copy(output):
                    pass
                return os.waitpid(self._child, 0)[1]

    def _start_hook(self) -> None:
        """Run the hook in the container, whose PID namespace its process is in."""
        self._hook = os.fork()
        if self._hook:
            self._hook_end = os.pidfd_open(self._hook)
            self._poll.register(self._hook_end, select.POLLIN)
            return
        try:
            nothing = os.open("/dev/null", os.O_RDWR)
            for target in (0, 1, 2):
                os.dup2(nothing, target)
            self._sandbox.execute_in(self._config, self._child, self._config["pre_stop"])
        finally:
            os._exit(START_ERROR)

    def _process_end_of_hook(self) -> None:
        self._poll.unregister(self._hook_end)
        os.waitpid(self._hook, 0)  # process 1 cannot end before
        os.kill(self._child, signal.SIGTERM)

    def _read_start_error(self, start_error: int) -> None:
        text = os.read(start_error, _CHUNK)
        self._start_error += text
        if not text:
            self._poll.unregister(start_error)
            self._command_runs = not self._start_error

    def _process_commands(self) -> None:
        commands = os.read(0, _CHUNK)
        if not commands:
            self._poll.unregister(0)
        if not commands or b"K" in commands:
            os.kill(self._child, signal.SIGKILL)
        elif self._command_runs and self._config["pre_stop"]:
            if not self._hook:
                self._start_hook()
        elif self._command_runs:
            os.kill(self._child, signal.SIGTERM)
        else:
            # The kernel drops signals for which process 1 of a namespace has no handler, and the
            # code that builds the container has none. So it is killed before its command starts.
            self._terminated = True
            os.kill(self._child, signal.SIGKILL)


def record_end(folder: Path, code: int, start_error: str) -> None:
    """Write what `container_record.termination` reads, atomically."""
    finished = datetime.now(UTC).isoformat()
    end = {"exit_code": code, "finished": finished, "start_error": start_error}
    partial = folder / "ended.partial"
    partial.write_text(json.dumps(end))
    partial.rename(folder / "ended.json")


class LogWriter:
    """Writes the log as container runtimes do: `TIME stdout F line`, or P for a part of a line."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "ab", buffering=0)
        self._rest = b""

    def __enter__(self) -> "LogWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self._file.write(_entries(b"P", [self._rest]))
        self._file.close()

    def copy(self, source: int) -> bool:
        """Copy the available output to the log; return False at its end."""
        data = os.read(source, _CHUNK)
        *lines, self._rest = (self._rest + data).split(b"\n")
        text = b""
        for line in lines:
            parts = _split(line)
            text += _entries(b"P", parts[:-1]) + _entries(b"F", parts[-1:])
        if len(self._rest) >= _LINE_BYTES:
            *full, self._rest = _split(self._rest)
            text += _entries(b"P", full)
        self._file.write(text)
        return bool(data)


def _split(line: bytes) -> list[bytes]:
    return [line[i : i + _LINE_BYTES] for i in range(0, max(len(line), 1), _LINE_BYTES)]


def _entries(tag: bytes, lines: list[bytes]) -> bytes:
    prefix = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode() + b" stdout " + tag
    return b"".join(prefix + b" " + line + b"\n" for line in lines)


if __name__ == "__main__":
    main()
