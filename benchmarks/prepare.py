"""Measures the speed and the memory of preparation; prints a table.

The inputs are files of several sizes with real conversations, drawn with repetition from those of
the demo. The trainer's own code prepares each file in a separate process tree, whose processes may
each have at most --memory of private memory (RLIMIT_DATA). The memory of a tree is its proportional
set size, sampled five times a second, in which shared pages count once.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune_local.cache import TREE, cache_folder
from finetune_local.demo import inputs

OUT = TREE / "build" / "benchmarks" / "prepare"
_INTERVAL = 0.2  # s
_PROJECTED_BYTES = 10e9  # input size for which the table projects the time
_console = Console(highlight=False, stderr=True, soft_wrap=True)
_CHILD = """
import json, os, sys, time
from finetune_api.run import RunConfig
from finetune_trainer.prepare import preparation
from finetune_trainer.data import build
from finetune_trainer.common.reporter import ChannelReporter
if __name__ == "__main__":
    import logging
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    config = RunConfig.model_validate_json(sys.argv[1])
    if sys.argv[2] != "0":
        build.processes = lambda size: int(sys.argv[2])
    started = time.monotonic()
    result = preparation.run(config, ChannelReporter(os.open(os.devnull, os.O_WRONLY)))
    size = sum(source["bytes"] for source in json.loads(sys.argv[3]))
    print(json.dumps({
        "seconds": time.monotonic() - started,
        "processes": build.processes(size),
        "data": result.data.to_dict(),
    }))
"""


def main() -> int:
    """Run the command line."""
    arguments = _parser().parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    claim = OUT / "claim"
    claim.mkdir(parents=True)
    shutil.copytree(inputs.model(cache_folder(), _console.print), claim / "model")
    inputs.data(cache_folder(), claim, _console.print)
    found = []
    for megabytes in arguments.sizes:
        path = _write(claim, megabytes * 10**6)
        for processes in arguments.processes:
            _console.print(f"{megabytes} MB, {processes or 'all'} processes")
            found.append(_measure(claim, path, processes, arguments.memory))
            # So that a long run that is interrupted has printed its figures.
            _console.print(found[-1])
        path.unlink()
    Console().print(_table(found, arguments.memory))
    shutil.rmtree(OUT)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100, 500], help="MB of input (default: 100 500)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[0],
        help="number of processes; 0 means as many as in a job (default: 0)",
    )
    parser.add_argument("--memory", type=int, default=2000, help="MB per process (default: 2000)")
    return parser


def _write(claim: Path, size: int) -> Path:
    """Write conversations, each joined from one to four of the demo's, up to the size in bytes."""
    lines = (claim / "train.jsonl").read_text().splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    generator = random.Random(1)
    path = claim / f"chats-{size}.jsonl"
    written = 0
    with path.open("w") as file:
        while written < size:
            drawn = generator.choices(chats, k=generator.randint(1, 4))
            messages = [message for chat in drawn for message in chat]
            written += file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return path


def _measure(claim: Path, path: Path, processes: int, megabytes: int) -> dict[str, Any]:
    size = path.stat().st_size
    storage = f"runs/{size}-{processes}"
    config = {
        "jobName": "job",
        "jobNamespace": "default",
        "jobUid": "uid",
        "role": "prepare",
        "model": {"source": "pvc://w/model"},
        "dataset": {"train": [{"source": f"pvc://w/{path.name}"}]},
        "training": {"sequenceLength": 2048},
        "checkpoints": {"storage": f"pvc://w/{storage}"},
        "mounts": {"w": str(claim)},
    }
    limit = megabytes * 10**6
    script = OUT / "child.py"
    script.write_text(_CHILD)
    process = subprocess.Popen(
        [
            *(sys.executable, str(script), json.dumps(config), str(processes)),
            json.dumps([{"bytes": size}]),
        ],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    peak = largest = 0
    while process.poll() is None:
        sizes = [pss(pid) for pid in process_tree(process.pid)]
        peak, largest = max(peak, sum(sizes)), max(largest, *sizes)
        time.sleep(_INTERVAL)
    if process.returncode:
        raise SystemExit(f"preparation failed with exit code {process.returncode}")
    assert process.stdout is not None
    figures: dict[str, Any] = json.loads(process.stdout.read())
    shutil.rmtree(claim / storage)
    return figures | {"size": size, "tree": peak, "largest": largest}


def process_tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return  # the process has just ended
    for child in children:
        yield from process_tree(int(child))


def pss(pid: int) -> int:
    """Return the proportional set size in bytes: shared pages are divided by their users."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0
    )


def _table(found: list[dict[str, Any]], megabytes: int) -> Table:
    cores = len(os.sched_getaffinity(0))
    table = Table(title=f"preparation, {cores} cores, {megabytes} MB of memory per process")
    for name in (
        *(
            "input",
            "processes",
            "examples",
            "tokens",
            "seconds",
            "tokens/s",
            "tokens/s per process",
        ),
        *("MB/s", "10 GB", "peak of the tree", "largest process"),
    ):
        table.add_column(name, justify="right")
    for one in found:
        seconds, tokens, size = one["seconds"], one["data"]["tokens"], one["size"]
        table.add_row(
            f"{size / 1e6:.0f} MB",
            str(one["processes"]),
            f"{one['data']['examples']:,}",
            f"{tokens / 1e6:.1f} M",
            f"{seconds:.0f}",
            f"{tokens / seconds:,.0f}",
            f"{tokens / seconds / one['processes']:,.0f}",
            f"{size / seconds / 1e6:.1f}",
            f"{_PROJECTED_BYTES / size * seconds / 3600:.1f} h",
            f"{one['tree'] / 1e6:.0f} MB",
            f"{one['largest'] / 1e6:.0f} MB",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
