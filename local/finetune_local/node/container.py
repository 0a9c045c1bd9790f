"""Runs one container as a local process."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import Process
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_local.cache import TREE
from finetune_local.node import container_record
from finetune_local.node.container_record import Termination
from finetune_local.node.volumes import Mount
from finetune_local.processes import children_of

SHIM = Path(__file__).with_name("shim.py")
ENTER = Path(__file__).with_name("enter.py")
_CONFIGURATION = "sandbox.json"


def _image_folders() -> list[str]:
    """Return the folders of the local image, which a volume of the pod must not hide."""
    # Not all of sys.path, because it contains PYTHONPATH and the folder that Python started in.
    packages = {path for path in map(Path, sys.path) if path.name.endswith("-packages")}
    paths = {TREE, Path(sys.base_prefix), *(path for path in packages if path.is_dir())}
    return [str(path) for path in sorted(paths) if not paths & set(path.parents)]


@dataclass(frozen=True)
class Launch:
    """What a container is started with; most of it is configuration of the sandbox."""

    command: list[str]
    pre_stop: list[str]  # the command that runs in the container before SIGTERM, if there is one
    env: dict[str, str]
    cwd: str
    user: int
    group: int
    hostname: str
    hosts: str
    mounts: list[Mount]
    read_only_root: bool
    termination_path: str
    fall_back_to_logs: bool


class Container:
    """A container that has been started or will be."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self._launch, self._folder = launch, folder
        self.started = datetime.now(UTC)
        self._commands = b""  # for the shim, given before it was started
        self._process: Process | None = None

    async def start(self) -> None:
        """Start the process in its own namespaces; OSError if the machine cannot."""
        container_record.begin(self._folder, self.started)
        (self._folder / "root").mkdir(exist_ok=True)
        file = self._folder / _CONFIGURATION
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as output:
            json.dump(
                self._configuration(), output
            )  # contains Secrets, so only the owner can read it
        with (self._folder / "shim.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(SHIM), str(file)),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._send(b"")

    async def wait(self) -> Termination:
        """Wait until process 1 has ended, and its PID namespace with it; return how."""
        assert self._process is not None
        await self._process.wait()
        (self._folder / _CONFIGURATION).unlink(missing_ok=True)
        fall_back = self._launch.fall_back_to_logs
        return container_record.termination(self._folder, self.started, fall_back_to_logs=fall_back)

    def terminate(self) -> None:
        """Send SIGTERM to process 1 of the container only, after the hook preStop has ended."""
        self._send(b"T")

    def kill(self) -> None:
        """Send SIGKILL to process 1; the kernel ends the other processes of its namespace."""
        self._send(b"K")

    async def execute(self, command: list[str], *, stdin: bool) -> Process:
        """Start another command in the container; LookupError if the container does not run."""
        first = children_of(self._process.pid) if self._process is not None else []
        if not first:
            raise LookupError("the container does not run")
        entry = (sys.executable, "-I", "-S", str(ENTER), str(self._folder / _CONFIGURATION))
        return await asyncio.create_subprocess_exec(
            *(*entry, str(first[0]), *command),
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def is_started(self) -> bool:
        """Whether there is a process to wait for."""
        return self._process is not None

    def _send(self, command: bytes) -> None:
        """Send a command to the shim once it is started; a shim that has ended ignores it."""
        self._commands += command
        if self._process is not None and self._process.stdin is not None and self._commands:
            self._process.stdin.write(self._commands)
            self._commands = b""

    def _configuration(self) -> dict[str, object]:
        own = {
            "root": str(self._folder / "root"),
            "termination_log": str(container_record.termination_file(self._folder)),
            "visible": _image_folders(),
        }
        return asdict(self._launch) | own
