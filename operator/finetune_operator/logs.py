"""One record is one line of bounded length, whatever was put into it.

Messages hold words of pods and of users: a line break would be the beginning of a line that nobody
wrote, and an escape sequence would be carried out by the terminal that shows the log.
"""

import logging
import re

from finetune_api.base import CONTROLS

MOST = 4096  # letters of a message; tracebacks are our own
_CONTROLS = re.compile(f"[{CONTROLS}\t\n]")


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


class OneLine(logging.Formatter):
    """The formatter of the operator's log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line before a traceback."""
        if len(record.message) > MOST:
            record.message = record.message[:MOST] + "…"
        return _CONTROLS.sub(_escaped, super().formatMessage(record))
