"""One container as a local process: start, signal, wait, result."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_local.cache import TREE

Object = dict[str, Any]
_SANDBOX = Path(__file__).with_name("sandbox.py")
_MESSAGE_BYTES = 4096
_LOG_LINES, _LOG_BYTES = 80, 2048  # FallbackToLogsOnError, as the kubelet does it


def _behind_the_image() -> list[str]:
    """What the local image is made of, where a folder of the pod's own would hide it."""
    paths = {str(TREE), sys.base_prefix, *(p for p in sys.path if Path(p).is_dir())}
    return sorted(path for path in paths if path.startswith("/tmp/"))


@dataclass(frozen=True)
class Launch:
    """Everything a container needs to start."""

    name: str
    command: list[str]
    env: dict[str, str]
    cwd: str
    user: int
    group: int
    hostname: str
    hosts: Path
    mounts: list[Object]
    termination_path: str
    fall_back_to_logs: bool


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    exit_code: int
    started: datetime
    finished: datetime
    message: str

    @property
    def reason(self) -> str:
        """As the kubelet names it."""
        return "Completed" if self.exit_code == 0 else "Error"


class Container:
    """A started container."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self._launch, self._folder = launch, folder
        self.log = folder / "log"
        self.started = datetime.now(UTC)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process in namespaces of its own."""
        (self._folder / "root").mkdir(parents=True, exist_ok=True)
        termination = self._folder / "termination-log"
        termination.touch()
        launch = self._launch
        config = {
            "hostname": launch.hostname,
            "root": str(self._folder / "root"),
            "mounts": launch.mounts,
            "hosts": str(launch.hosts),
            "termination_log": str(termination),
            "termination_path": launch.termination_path,
            "cwd": launch.cwd,
            "user": launch.user,
            "group": launch.group,
            "command": launch.command,
            "env": launch.env,
            "visible": _behind_the_image(),
        }
        file = self._folder / "sandbox.json"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as output:
            json.dump(config, output)  # holds environment from Secrets: owner only
        with os.fdopen(
            os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab"
        ) as log:
            self._process = await asyncio.create_subprocess_exec(
                *("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"),
                *(sys.executable, "-I", "-S", str(_SANDBOX), str(file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def wait(self) -> Ended:
        """Until process 1 ended; its whole PID namespace ends with it."""
        assert self._process is not None
        code = await self._process.wait()
        finished = datetime.now(UTC)
        (self._folder / "sandbox.json").unlink(missing_ok=True)
        code = 128 - code if code < 0 else code
        return Ended(code, self.started, finished, self._message(code))

    def terminate(self) -> None:
        """SIGTERM to process 1 of the container, and to nobody else."""
        for pid in self._children():
            _signal(pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to process 1: the kernel ends the rest of its namespace."""
        for pid in self._children():
            _signal(pid, signal.SIGKILL)

    def _children(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [int(child) for child in text.split()]

    def _message(self, code: int) -> str:
        written = (self._folder / "termination-log").read_bytes()[:_MESSAGE_BYTES]
        if not written and code != 0 and self._launch.fall_back_to_logs:
            lines = self.log.read_bytes()[-_LOG_BYTES:].splitlines()[-_LOG_LINES:]
            written = b"\n".join(lines)
        return written.decode(errors="replace")


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
