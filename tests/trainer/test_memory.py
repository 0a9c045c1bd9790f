"""What a container may use, as its cgroup says it."""

from pathlib import Path

import pytest

from finetune_trainer import memory

LIMITS = {
    "version 2": ("memory.max", "2147483648\n", 2 << 30),
    "version 2, none": ("memory.max", "max\n", None),
    "version 1": ("memory/memory.limit_in_bytes", "2147483648\n", 2 << 30),
    "version 1, none": ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    "no cgroup": ("other", "1", None),
}


@pytest.mark.parametrize(("file", "text", "expected"), LIMITS.values(), ids=LIMITS.keys())
def test_the_limit_of_memory(tmp_path: Path, file: str, text: str, expected: int | None) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert memory.limit(tmp_path) == expected
