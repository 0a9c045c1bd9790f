"""The processes of one contender: started, watched, ended with whatever they started."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from benchmarks.operators.show import progress
from benchmarks.prepare import tree

from finetune_local.cache import TREE
from finetune_local.machine import die_with_parent

_EVERY = 0.2  # s
_GONE = 15.0  # s, at most, until killed processes are gone
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
_PROBE = Path(__file__).parent / "probe"


class GangError(Exception):
    """A process failed; the message has the end of what it wrote."""


class Gang:
    """All that is measured together. Leaving the context leaves no process."""

    def __init__(self, folder: Path, name: str) -> None:
        self.log = folder / f"{name}.log"
        self.peak = 0
        """Resident bytes of all processes together."""
        self.others = 0.0
        """CPU seconds of everything else on the machine."""
        self._peaks = folder / f"{name}.peaks"
        self._name = name
        self._processes: list[subprocess.Popen[bytes]] = []
        self._cpu: dict[int, float] = {}  # by process
        self._cpu_at: dict[int, float] = {}  # by lines in the file of steps
        self._busy = _busy()
        self._output = self.log.open("wb")
        self.started = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        deadline = time.monotonic() + _GONE
        while time.monotonic() < deadline and any(map(_is_there, self._cpu)):
            time.sleep(_EVERY)  # the ranks of a supervisor die with it, a moment later
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
        """Until the file of steps has `total` lines; GangError when the processes end before."""
        with progress() as bar:
            task = bar.add_task(self._name, total=total)
            while True:
                ended = [process.poll() for process in self._processes]
                finished = len(read(steps))
                self._look(finished)
                bar.update(task, completed=finished)
                if finished >= total:
                    return
                if any(ended) or None not in ended:
                    raise self._failure()
                time.sleep(_EVERY)

    def wait(self) -> None:
        """Until all have ended; GangError when one fails."""
        while None in (codes := [process.poll() for process in self._processes]):
            if any(codes):
                break
            self._look()
            time.sleep(_EVERY)
        if any(codes):
            raise self._failure()

    def cpu(self, lines: int) -> float:
        """CPU seconds of all processes when the file of steps was seen with so many lines."""
        return next(used for seen, used in sorted(self._cpu_at.items()) if seen >= lines)

    @property
    def device_peak(self) -> int | None:
        """Most bytes that torch had allocated on one GPU; None without."""
        found = [int(file.read_text() or 0) for file in self._peaks.glob("*")]
        return max(found, default=None)

    def _look(self, finished: int = 0) -> None:
        resident = 0
        for pid in (pid for process in self._processes for pid in tree(process.pid)):
            try:
                resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            self._cpu[pid] = (int(stat[11]) + int(stat[12])) / _TICKS
        self.peak = max(self.peak, resident)
        used = sum(self._cpu.values())
        self._cpu_at.setdefault(finished, used)
        self.others = _busy() - self._busy - used

    def _failure(self) -> GangError:
        self._output.flush()
        tail = self.log.read_text(errors="replace").splitlines()[-30:]
        return GangError(f"{self._name} ended before its time:\n" + "\n".join(tail))


def read(file: Path, part: str = "train") -> list[dict[str, Any]]:
    """Whole lines of a file of steps, of one kind ("train": one a finished step); maybe none."""
    try:
        *lines, _ = file.read_text().split("\n")
    except OSError:
        return []
    found = [json.loads(line) for line in lines]
    return [line for line in found if line["part"] == part]


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _busy() -> float:
    """CPU seconds of the whole machine: user, nice, system, irq, softirq."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(int(fields[i]) for i in (1, 2, 3, 6, 7)) / _TICKS
