"""How far preparation is: into the log every few seconds, to the supervisor at every block."""

import logging
import time

from finetune_trainer.common.reporter import Reporter

_log = logging.getLogger(__name__)
_SAY_EVERY = 5.0  # s


class Progress:
    """How far the input was read, said every few seconds."""

    def __init__(self, size: int, report: Reporter) -> None:
        self._size, self._report = max(1, size), report
        self._before = self._read = self._examples = self._tokens = self._new = 0
        self._source = ""
        self._files: list[int] = []
        self._started = self._said = time.monotonic()

    def begin(self, source: str, files: list[int]) -> None:
        """The next source, with the sizes of its files."""
        self._before += sum(self._files)
        self._source, self._files, self._read = source, files, 0

    def skip(self, tokens: int) -> None:
        """The source was finished by a builder before this one."""
        self._tokens += tokens
        self._read = sum(self._files)
        self._report.advance()

    def read(self, file: int, done: int) -> None:
        """So many bytes of the file were read."""
        self._read = sum(self._files[:file]) + min(done, self._files[file])
        self._report.advance()

    def add(self, examples: int, tokens: int) -> None:
        """A block was finished."""
        self._examples += examples
        self._tokens += tokens
        self._new += tokens
        self._report.advance(examples)
        now = time.monotonic()
        if now - self._said < _SAY_EVERY:
            return
        self._said = now
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
