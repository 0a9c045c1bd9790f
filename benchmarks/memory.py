"""Measures the host memory of a small training run: `python benchmarks/memory.py`.

Trains SmolLM2-135M as `make demo` does (fp32, ZeRO-2, two processes, rows of 256 tokens), through
preparation, a few steps, a checkpoint and the export. Ten times a second it reads the proportional
set size (PSS) of every process, in which pages that several processes share are divided by their
number. The control plane, the node and the operator of the demo are not part of it.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import os
import shutil
import signal
import threading
from collections import defaultdict
from pathlib import Path

from benchmarks.prepare import process_tree, pss
from benchmarks.trainers import ours, workload
from benchmarks.trainers.gang import Gang, GangError, read

from finetune_local.cache import TREE
from finetune_trainer.run_dir.paths import RunPaths

OUT = TREE / "build" / "benchmarks" / "memory"
_INTERVAL = 0.1  # s


def main() -> int:
    """Run the command line."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    try:
        with _Watch() as watch:
            work = workload.make(options, OUT)
            paths = RunPaths.of(work.config.replace(attempt=1))
            watch.follow(paths)
            with Gang(OUT, "ours") as gang:
                ours.start(gang, options, work, OUT)
                gang.wait()
        steps = [line["seconds"] for line in read(paths.log(1))]
    except GangError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(watch.table())
    print(f"seconds per step: {', '.join(f'{seconds:.1f}' for seconds in steps)}")
    shutil.rmtree(OUT / "claim")
    return 0


class _Watch:
    """Samples the processes that this one starts, in a thread."""

    def __init__(self) -> None:
        self._paths: RunPaths | None = None
        # Phase -> the largest process of each kind, and the most of all processes together.
        self._largest: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def follow(self, paths: RunPaths) -> None:
        """Find the phase of the run from its folder from now on; before, it is prepared."""
        self._paths = paths

    def table(self) -> str:
        """Return a table of Markdown in MB: phases, the largest rank, everything else, the sum."""
        rows = ["| phase | largest rank | supervisor | export | all |", "|---|---|---|---|---|"]
        for phase, largest in self._largest.items():
            cells = (largest[kind] / 1e6 for kind in ("rank", "supervisor", "export", "all"))
            rows.append(f"| {phase} | " + " | ".join(f"{size:,.0f}" for size in cells) + " |")
        return "\n".join(rows)

    def _sample(self) -> None:
        own = os.getpid()
        while not self._done.wait(_INTERVAL):
            sizes = [(_kind(pid), pss(pid)) for pid in process_tree(own) if pid != own]
            kinds = {kind for kind, _ in sizes}
            largest = self._largest[self._phase(kinds)]
            for kind, size in sizes:
                largest[kind] = max(largest[kind], size)
            largest["all"] = max(largest["all"], sum(size for _, size in sizes))

    def _phase(self, kinds: set[str]) -> str:
        if self._paths is None:
            return "preparation"
        if "export" in kinds:
            return "export"
        if any(self._paths.checkpoints.glob("*")):
            return "training after a save"
        return "training" if read(self._paths.log(1)) else "load and first step"


def _kind(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return "ended"
    kinds = {"finetune_trainer.rank": "rank", "finetune_trainer": "supervisor", "export": "export"}
    return next((kinds[word] for word in command if word in kinds), "other")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/memory.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--shape", choices=workload.SHAPES, help="random Llama of this size instead of SmolLM2")
    add("--precision", choices=("BF16", "FP32"), default="FP32", help="precision (default: FP32)")
    add("--stage", type=int, choices=(1, 2, 3), default=2, help="ZeRO stage (default: 2)")
    add("--world", type=int, default=2, help="processes (default: 2)")
    add("--sequence-length", type=int, default=256, help="tokens per row (default: 256)")
    add("--micro-batch", type=int, default=2, help="rows per forward pass (default: 2)")
    add("--accumulate", type=int, default=1, help="forward passes per step (default: 1)")
    add("--recompute", action="store_true", help="recompute activations")
    add("--steps", type=int, default=6, help="optimizer steps (default: 6)")
    add("--saved", type=int, default=3, help="step of the first checkpoint (default: 3)")
    options = parser.parse_args()
    options.data, options.cuda = "exchanges", False
    options.threads = max(1, len(os.sched_getaffinity(0)) // options.world)
    return options


if __name__ == "__main__":
    sys.exit(main())
