"""The memory and the processors that are available, according to the kernel's files."""

import os
from pathlib import Path

import pytest

from finetune_trainer.common import machine

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "current", "inactive", "available", "expected"),
    [
        (8 * GIB, 3 * GIB, GIB, 100 * GIB, 6 * GIB),  # the container's limit counts
        (8 * GIB, 3 * GIB, GIB, 2 * GIB, 2 * GIB),  # the machine has less
        ("max", 3 * GIB, GIB, 50 * GIB, 50 * GIB),
        (2 * GIB, 3 * GIB, 0, 50 * GIB, 0),
    ],
)
def test_the_smaller_of_container_limit_and_machine_counts(
    tmp_path: Path, limit: object, current: int, inactive: int, available: int, expected: int
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{current}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {available // 1024} kB\n")
    assert machine.available_memory(tmp_path, meminfo) == expected


def test_without_a_limit_the_memory_of_the_machine_counts(tmp_path: Path) -> None:
    assert machine.available_memory(tmp_path / "none") > 0
    assert machine.available_memory(tmp_path / "none", tmp_path / "none") == 0


LIMITS = {
    "version 2": ("memory.max", "2147483648\n", 2 << 30),
    "version 2, none": ("memory.max", "max\n", None),
    "version 1": ("memory/memory.limit_in_bytes", "2147483648\n", 2 << 30),
    "version 1, none": ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    "no cgroup": ("other", "1", None),
}


@pytest.mark.parametrize(("file", "text", "expected"), LIMITS.values(), ids=LIMITS.keys())
def test_the_memory_limit_of_the_container(
    tmp_path: Path, file: str, text: str, expected: int | None
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert machine.memory_limit(tmp_path) == expected


QUOTAS = {
    "version 2": ({"cpu.max": "200000 100000\n"}, 2),
    "version 2, part of a core": ({"cpu.max": "50000 100000\n"}, 1),
    "version 2, no limit": ({"cpu.max": "max 100000\n"}, 8),
    "version 1": (
        {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1, no limit": (
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "no cgroup": ({}, 8),
}


@pytest.mark.parametrize(("files", "expected"), QUOTAS.values(), ids=QUOTAS.keys())
def test_usable_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.usable_cpus(tmp_path) == expected
