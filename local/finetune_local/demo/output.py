"""What the demo prints."""

import sys
import time

from rich.console import Console


class DemoError(Exception):
    """The demo cannot continue. The message explains why and what to do."""


class Output:
    """Prints the steps of the demo with the time since its start."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._start = time.monotonic()

    def heading(self, title: str) -> None:
        """Print the heading of a step."""
        seconds = time.monotonic() - self._start
        self._console.rule(f"[bold]{title}[/] [dim]{seconds:.0f} s", align="left", style="dim")

    def line(self, text: str) -> None:
        """Print text below the last heading."""
        self._console.print(text, markup=False, soft_wrap=True)

    def error(self, text: str) -> None:
        """Print an error to stderr."""
        print(f"demo: {text}", file=sys.stderr)
