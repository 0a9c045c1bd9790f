"""The progress of preparation: logged every few seconds, reported to the supervisor per block."""

import logging
import time

from finetune_trainer.common.reporter import Reporter

_log = logging.getLogger(__name__)
_LOG_INTERVAL = 5.0  # s


class Progress:
    """How much of the input was read and tokenized."""

    def __init__(self, size: int, report: Reporter) -> None:
        self._size, self._report = max(1, size), report
        self._before = self._read = self._examples = self._tokens = self._new = 0
        self._source = ""
        self._files: list[int] = []
        self._started = self._logged = time.monotonic()

    def begin(self, source: str, files: list[int]) -> None:
        """Begin the next source, given the sizes of its files in bytes."""
        self._before += sum(self._files)
        self._source, self._files, self._read = source, files, 0

    def skip(self, tokens: int) -> None:
        """Count a source that an earlier builder has finished."""
        self._tokens += tokens
        self._read = sum(self._files)
        self._report.advance()

    def read(self, file: int, done: int) -> None:
        """Set the number of bytes of a file that were read."""
        self._read = sum(self._files[:file]) + min(done, self._files[file])
        self._report.advance()

    def add(self, examples: int, tokens: int) -> None:
        """Count the examples and tokens of a finished block."""
        self._examples += examples
        self._tokens += tokens
        self._new += tokens
        self._report.advance(examples)
        now = time.monotonic()
        if now - self._logged < _LOG_INTERVAL:
            return
        self._logged = now
        share = max(1, self._before + self._read) / self._size
        seconds = now - self._started
        _log.info(
            "preparing data: %.0f %% of %.1f MB, %d examples, %.1f M tokens, %.0f tokens/s, about "
            "%.0f s left; %s",
            100 * share,
            self._size / 1e6,
            self._examples,
            self._tokens / 1e6,
            self._new / seconds,
            seconds * (1 - share) / share,
            self._source,
        )
