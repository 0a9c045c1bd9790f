"""Renders the table in Markdown, with a column per contender and ratios of ours to the others."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable

from benchmarks.operators.show import machine
from benchmarks.trainers.measured import Measured, Step
from benchmarks.trainers.workload import Workload

_MIB = 2**20


def table(options: argparse.Namespace, work: Workload, found: list[Measured], peak: float) -> str:
    """Return the table; `peak` is the FLOP/s that count as 100 % of MFU."""
    peers = found[1:] if options.ours else []
    columns = [one.name for one in found] + [f"ours to {one.name}" for one in peers]
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {machine()}; {options.world} processes of "
        f"{options.threads} threads; matmul {peak / 1e9:,.0f} GFLOP/s.",
        f"{work.conversations:,} conversations, {work.tokens:,} tokens, longest {work.longest:,}.",
        f"`python benchmarks/trainer.py {' '.join(sys.argv[1:])}`",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name, figure, shown, compared in _rows(work, peak):
        values = [figure(one) for one in found]
        cells = [_cell(value, shown) for value in values]
        cells += [
            _cell(values[0] / value if compared and value else None, "{:.2f}")
            for value in values[1 : 1 + len(peers)]
        ]
        if any(value is not None for value in values):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None, shown: str) -> str:
    return "" if value is None else shown.format(value)


def _rows(
    work: Workload, peak: float
) -> Iterable[tuple[str, Callable[[Measured], float | None], str, bool]]:
    """Return rows: name, figure, format, and whether a ratio is meaningful."""

    def computed(step: Step) -> float:
        return step.tokens * (work.body + work.head)

    def needed(step: Step) -> float:
        return step.tokens * work.body + step.trained * work.head

    def cpu(one: Measured) -> float:
        return 1000 * one.cpu / sum(step.trained for step in one.steps[one.cpu_steps])

    def padding(one: Measured) -> float:
        real = sum(step.tokens for step in one.counted)
        return 100 - 100 * real / sum(step.computed for step in one.counted)

    def device(one: Measured) -> float | None:
        return None if one.device_peak is None else one.device_peak / _MIB

    return (
        ("trained tokens/s", lambda one: one.rate(lambda s: s.trained), "{:,.1f}", True),
        ("all tokens/s, no padding", lambda one: one.rate(lambda s: s.tokens), "{:,.1f}", True),
        ("CPU seconds per 1,000 trained tokens", cpu, "{:.2f}", True),
        ("MFU, %", lambda one: 100 * one.rate(computed) / peak, "{:.1f}", True),
        (
            "MFU, head counted only for trained tokens, %",
            lambda one: 100 * one.rate(needed) / peak,
            "{:.1f}",
            True,
        ),
        ("padding, % of computed tokens", padding, "{:.1f}", False),
        ("peak resident memory, MiB", lambda one: one.peak / _MIB, "{:,.0f}", True),
        ("peak of torch on a GPU, MiB", device, "{:,.0f}", True),
        ("checkpoint: training stops for, s", lambda one: one.stall, "{:.2f}", True),
        ("checkpoint: later steps are slower by, s", lambda one: one.slowed, "{:.1f}", False),
        ("time to the first step, s", lambda one: one.first_step, "{:.1f}", True),
        (
            "conversations per step",
            lambda one: sum(s.conversations for s in one.counted) / len(one.counted),
            "{:.1f}",
            False,
        ),
        ("counted steps", lambda one: len(one.counted), "{:.0f}", False),
        ("counted seconds", lambda one: one.seconds, "{:.0f}", False),
        ("mean training loss", lambda one: one.loss, "{:.3f}", False),
        ("CPU of other processes of the machine, s", lambda one: one.others, "{:.0f}", False),
    )
