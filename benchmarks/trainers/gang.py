"""Starts, measures and ends the processes of one contender."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from benchmarks.operators.show import progress
from benchmarks.prepare import process_tree

from finetune_local.cache import TREE
from finetune_local.machine import die_with_parent

_INTERVAL = 0.2  # s
_KILL_TIMEOUT = 15.0  # s until killed processes are gone
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
_PROBE = Path(__file__).parent / "probe"


class GangError(Exception):
    """A process failed. The message contains the end of its output."""


class Gang:
    """Processes that are measured together and that end with the context."""

    def __init__(self, folder: Path, name: str) -> None:
        self.log = folder / f"{name}.log"
        self.peak = 0
        """Resident bytes of all processes together."""
        self.others = 0.0
        """CPU seconds of all other processes of the machine."""
        self._peaks = folder / f"{name}.peaks"
        self._name = name
        self._processes: list[subprocess.Popen[bytes]] = []
        self._cpu: dict[int, float] = {}  # by process
        self._cpu_at: dict[int, float] = {}  # by the number of lines in the file of steps
        self._busy = _busy()
        self._output = self.log.open("wb")
        self.started = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        deadline = time.monotonic() + _KILL_TIMEOUT
        while time.monotonic() < deadline and any(map(_exists, self._cpu)):
            time.sleep(_INTERVAL)  # the ranks of a supervisor end a moment after it
        self._output.close()

    def start(self, command: list[str], env: dict[str, str], *, cuda: bool) -> None:
        """Start a process."""
        if cuda:
            self._peaks.mkdir(exist_ok=True)
            env |= {"PYTHONPATH": str(_PROBE), "FINETUNE_BENCHMARK_PEAKS": str(self._peaks)}
        self._processes.append(
            subprocess.Popen(
                command,
                env=os.environ | env,
                cwd=TREE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        )

    def follow(self, steps: Path, total: int) -> None:
        """Wait until the file of steps has `total` lines; GangError if the processes end first."""
        with progress() as bar:
            task = bar.add_task(self._name, total=total)
            while True:
                ended = [process.poll() for process in self._processes]
                finished = len(read(steps))
                self._sample(finished)
                bar.update(task, completed=finished)
                if finished >= total:
                    return
                if any(ended) or None not in ended:
                    raise self._failure()
                time.sleep(_INTERVAL)

    def wait(self) -> None:
        """Wait until all processes have ended; GangError if one fails."""
        while None in (codes := [process.poll() for process in self._processes]):
            if any(codes):
                break
            self._sample()
            time.sleep(_INTERVAL)
        if any(codes):
            raise self._failure()

    def cpu(self, lines: int) -> float:
        """Return the CPU seconds of all processes until the file of steps had so many lines."""
        return next(used for count, used in sorted(self._cpu_at.items()) if count >= lines)

    @property
    def device_peak(self) -> int | None:
        """Peak of the bytes that torch allocated on one GPU; None without a GPU."""
        found = [int(file.read_text() or 0) for file in self._peaks.glob("*")]
        return max(found, default=None)

    def _sample(self, finished: int = 0) -> None:
        resident = 0
        for pid in (pid for process in self._processes for pid in process_tree(process.pid)):
            try:
                resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # the process has just ended
            self._cpu[pid] = (int(stat[11]) + int(stat[12])) / _TICKS
        self.peak = max(self.peak, resident)
        used = sum(self._cpu.values())
        self._cpu_at.setdefault(finished, used)
        self.others = _busy() - self._busy - used

    def _failure(self) -> GangError:
        self._output.flush()
        tail = self.log.read_text(errors="replace").splitlines()[-30:]
        return GangError(f"{self._name} ended too early:\n" + "\n".join(tail))


def read(file: Path, part: str = "train") -> list[dict[str, Any]]:
    """Return the complete lines of one kind in a file of steps; one per step for "train"."""
    try:
        *lines, _ = file.read_text().split("\n")
    except OSError:
        return []
    found = [json.loads(line) for line in lines]
    return [line for line in found if line["part"] == part]


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _busy() -> float:
    """Return the CPU seconds of the machine: user, nice, system, irq, softirq."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(int(fields[i]) for i in (1, 2, 3, 6, 7)) / _TICKS
