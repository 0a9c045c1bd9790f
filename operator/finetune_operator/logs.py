"""Log formatting: each record is one line of bounded length.

Messages contain text of pods and of users. A line break in it would forge another record, and an
escape sequence would be carried out by the terminal that shows the log.
"""

import logging
import re

from finetune_api.base import CONTROLS

MAX_LENGTH = 4096  # characters of a message; tracebacks are not shortened
_CONTROLS = re.compile(f"[{CONTROLS}\t\n]")


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


class OneLine(logging.Formatter):
    """The formatter of the operator's log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line before a traceback."""
        if len(record.message) > MAX_LENGTH:
            record.message = record.message[:MAX_LENGTH] + "…"
        return _CONTROLS.sub(_escaped, super().formatMessage(record))
