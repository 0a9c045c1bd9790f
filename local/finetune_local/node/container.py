"""One container as a local process: start, signal, wait, result."""

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_local.cache import TREE
from finetune_local.node import record
from finetune_local.node.record import Ended
from finetune_local.node.volumes import Mount

SHIM = Path(__file__).with_name("shim.py")


def _behind_the_image() -> list[str]:
    """What the local image is made of: shown also where a volume of the pod would hide it."""
    # Not all of sys.path: the folder that Python was started in is there, and PYTHONPATH.
    packages = {path for path in map(Path, sys.path) if path.name.endswith("-packages")}
    paths = {TREE, Path(sys.base_prefix), *(path for path in packages if path.is_dir())}
    return [str(path) for path in sorted(paths) if not paths & set(path.parents)]


@dataclass(frozen=True)
class Launch:
    """Everything a container needs to start; most of it is the sandbox's configuration."""

    command: list[str]
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
    """A container that is started, or about to be."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self._launch, self._folder = launch, folder
        self.started = datetime.now(UTC)
        self._words = b""  # for the shim, said before it was there
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process in namespaces of its own; OSError when the machine cannot."""
        record.begin(self._folder, self.started)
        (self._folder / "root").mkdir(exist_ok=True)
        file = self._folder / "sandbox.json"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as output:
            json.dump(self._configuration(), output)  # holds Secrets: owner only
        with (self._folder / "shim.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(SHIM), str(file)),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._say(b"")

    async def wait(self) -> Ended:
        """Until process 1 ended; its whole PID namespace ends with it."""
        assert self._process is not None
        await self._process.wait()
        (self._folder / "sandbox.json").unlink(missing_ok=True)
        fall_back = self._launch.fall_back_to_logs
        return record.ended(self._folder, self.started, fall_back_to_logs=fall_back)

    def terminate(self) -> None:
        """SIGTERM to process 1 of the container, and to nobody else."""
        self._say(b"T")

    def kill(self) -> None:
        """SIGKILL to process 1: the kernel ends the rest of its namespace."""
        self._say(b"K")

    @property
    def is_started(self) -> bool:
        """Whether there is a process to wait for."""
        return self._process is not None

    def _say(self, word: bytes) -> None:
        """To the shim, as soon as it is there; one that has ended hears nothing."""
        self._words += word
        if self._process is not None and self._process.stdin is not None and self._words:
            self._process.stdin.write(self._words)
            self._words = b""

    def _configuration(self) -> dict[str, object]:
        own = {
            "root": str(self._folder / "root"),
            "termination_log": str(record.termination_file(self._folder)),
            "visible": _behind_the_image(),
        }
        return asdict(self._launch) | own
