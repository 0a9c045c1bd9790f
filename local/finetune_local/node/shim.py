"""Stands between the agent and one container: `python -I -S shim.py CONFIG`.

It makes the container's PID namespace and its process 1, writes what that says into the log with
the time of each line, obeys the agent, and leaves how it ended in the container's folder. The agent
speaks through stdin: T asks the container to end, K ends it, and so does the end of the pipe, which
means that the agent itself is gone. Words that come before the process exists wait in the pipe.
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
_LINE_BYTES = 16384  # a longer line is cut into parts, as containerd does
START_ERROR = 128


def main() -> None:
    """Run the container of the configuration to its end."""
    config = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[1]).parent
    try:
        code, error = Shim(folder, _sandbox(), config).run()
    except OSError as refused:
        code, error = START_ERROR, str(refused)
    write_end(folder, code, error)


def _sandbox() -> ModuleType:
    # Started without site-packages, for speed: the tree is not on the path.
    sys.path.append(str(Path(__file__).parents[2]))
    from finetune_local.node import sandbox

    return sandbox


class Shim:
    """One container."""

    def __init__(self, folder: Path, sandbox: ModuleType, config: dict[str, Any]) -> None:
        self._folder, self._sandbox, self._config = folder, sandbox, config
        self._poll = select.poll()
        self._begun = False  # whether the command runs: no signal is lost before it does
        self._terminated = False
        self._start_error = b""

    def run(self) -> tuple[int, str]:
        """Start it, serve it; exit code, and what was in the way of starting it."""
        output, output_end = os.pipe()
        birth, birth_end = os.pipe()  # closed by the exec; what comes out of it before is an error
        self._sandbox.unshare(_NEW_PIDS)
        self._child = os.fork()
        if self._child == 0:
            self._be_the_container(output_end, birth_end)
        os.close(output_end)
        os.close(birth_end)
        with LogWriter(self._folder / "log") as log:
            status = self._serve(output, birth, log)
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        if self._terminated:
            code = 128 + signal.SIGTERM
        return code, self._start_error.decode(errors="replace")

    def _be_the_container(self, output: int, birth: int) -> None:
        try:
            os.setsid()
            nothing = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec keeps that
            self._sandbox.become(self._config)
        except BaseException as error:
            os.write(birth, f"{self._config['command'][0]}: {error}".encode()[:4096])
        finally:
            os._exit(START_ERROR)

    def _serve(self, output: int, birth: int, log: "LogWriter") -> int:
        """Until process 1 has ended; the kernel ends its namespace before it tells us."""
        child = os.pidfd_open(self._child)
        for descriptor in (0, output, birth, child):
            self._poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if birth in ready:
                self._hear_of_birth(birth)
            if 0 in ready:
                self._obey()
            if output in ready and not log.copy(output):
                self._poll.unregister(output)  # it closed its output and lives on
            if child in ready:
                while log.copy(output):
                    pass
                return os.waitpid(self._child, 0)[1]

    def _hear_of_birth(self, birth: int) -> None:
        text = os.read(birth, _CHUNK)
        self._start_error += text
        if not text:
            self._poll.unregister(birth)
            self._begun = not self._start_error

    def _obey(self) -> None:
        words = os.read(0, _CHUNK)
        if not words:
            self._poll.unregister(0)
        if not words or b"K" in words:
            os.kill(self._child, signal.SIGKILL)
        elif self._begun:
            os.kill(self._child, signal.SIGTERM)
        else:
            # Process 1 of a namespace never sees a signal that it has no handler for, and what
            # builds the container has none: it ends here, before its command has begun.
            self._terminated = True
            os.kill(self._child, signal.SIGKILL)


def write_end(folder: Path, code: int, start_error: str) -> None:
    """The note that `record.ended` reads, whole or not at all."""
    finished = datetime.now(UTC).isoformat()
    note = {"exit_code": code, "finished": finished, "start_error": start_error}
    partial = folder / "ended.partial"
    partial.write_text(json.dumps(note))
    partial.rename(folder / "ended.json")


class LogWriter:
    """The log as container runtimes write it: `TIME stdout F line`, P for a part of a line."""

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
        """What is there to read, False at the end."""
        data = os.read(source, _CHUNK)
        *lines, self._rest = (self._rest + data).split(b"\n")
        text = b""
        for line in lines:
            parts = _cut(line)
            text += _entries(b"P", parts[:-1]) + _entries(b"F", parts[-1:])
        if len(self._rest) >= _LINE_BYTES:
            *full, self._rest = _cut(self._rest)
            text += _entries(b"P", full)
        self._file.write(text)
        return bool(data)


def _cut(line: bytes) -> list[bytes]:
    return [line[i : i + _LINE_BYTES] for i in range(0, max(len(line), 1), _LINE_BYTES)]


def _entries(tag: bytes, lines: list[bytes]) -> bytes:
    head = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode() + b" stdout " + tag
    return b"".join(head + b" " + line + b"\n" for line in lines)


if __name__ == "__main__":
    main()
