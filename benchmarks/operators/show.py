"""Output of a run: progress on the terminal, and the table at the end."""

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(highlight=False, stderr=True, soft_wrap=True)


def progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def table(figures: dict[str, dict[str, str]], arguments: argparse.Namespace) -> None:
    """Print a Markdown table with a column for each operator."""
    rows = list(dict.fromkeys(row for column in figures.values() for row in column))
    size = f"{arguments.jobs:,} jobs x {arguments.pods:,} pods"
    print(f"\n{time.strftime('%Y-%m-%d')}, {machine()}. {size}.")
    print(f"`python benchmarks/operator.py {' '.join(sys.argv[1:])}`\n")
    print("| | " + " | ".join(figures) + " |")
    print("|---|" + "---|" * len(figures))
    for row in rows:
        print(f"| {row} | " + " | ".join(c.get(row, "-") for c in figures.values()) + " |")


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = next(
        (
            line.partition(":")[2].strip()
            for line in text.splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1])  # MemTotal, kB
    return (
        f"{os.cpu_count()} cores of {model}, {memory / 2**20:.0f} GiB, Linux {os.uname().release}"
    )
