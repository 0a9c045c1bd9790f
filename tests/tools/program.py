"""The programs that tests start. `make tools` builds them, which takes longer than a test may."""

from pathlib import Path
from typing import Protocol

import pytest

from tests.tools.debian_tool import PROMETHEUS, PROMTOOL
from tests.tools.go_tool import HELM, VERSITYGW


class Tool(Protocol):
    """A program that is found on this machine or built into the cache."""

    @property
    def name(self) -> str:
        """Name of the program."""

    def find(self) -> Path | None:
        """Return the path of the program, or None if it is not built yet."""

    def build(self) -> Path:
        """Return the path of the program, building it if needed. Raises BuildError."""


ALL: tuple[Tool, ...] = (VERSITYGW, HELM, PROMETHEUS, PROMTOOL)


def program(tool: Tool) -> Path:
    """Return the path of the program, or skip the test that needs it."""
    found = tool.find()
    if found is None:
        pytest.skip(f"{tool.name} is not built; run `make tools`")
    return found
