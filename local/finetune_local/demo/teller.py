"""How the demo speaks."""

import sys
import time

from rich.console import Console


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


class Teller:
    """Says what happens, with the time since the start."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._start = time.monotonic()

    def step(self, title: str) -> None:
        """A new chapter."""
        seconds = time.monotonic() - self._start
        self._console.rule(f"[bold]{title}[/] [dim]{seconds:.0f} s", align="left", style="dim")

    def say(self, text: str) -> None:
        """A line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def fail(self, text: str) -> None:
        """A line on stderr."""
        print(f"demo: {text}", file=sys.stderr)
