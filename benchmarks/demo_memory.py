"""Measures the memory of a complete demo: `python benchmarks/demo_memory.py`.

Runs `make demo` and adds up, twice a second, the proportional set size (PSS) of every process that
it starts: control plane, node, operator, pods, and the commands that watch them.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import ctypes
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

from benchmarks.prepare import process_tree, pss

from finetune_local.cache import TREE

_INTERVAL = 0.5  # s
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Run the demo and print when it needed the most memory, and which programs had it."""
    # Daemons become children of this process, so that they are found.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    began = time.monotonic()
    demo = subprocess.Popen(["make", "demo"], cwd=TREE)
    largest: Counter[str] = Counter()
    moment = 0.0
    while demo.poll() is None:
        sizes: Counter[str] = Counter()
        for pid in process_tree(os.getpid()):
            sizes[_program(pid)] += pss(pid)
        if sizes.total() > largest.total():
            largest, moment = sizes, time.monotonic() - began
        time.sleep(_INTERVAL)
    print(f"most memory: {largest.total() / 1e6:,.0f} MB after {moment:.0f} s, of it")
    for program, size in largest.most_common():
        print(f"{size / 1e6:>8,.0f} MB  {program}")
    return demo.returncode


def _program(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return "ended"
    modules = [part for part in command if part.startswith("finetune_")]
    return modules[0] if modules else Path(command[0]).name


if __name__ == "__main__":
    sys.exit(main())
