"""The work queue of keys: deduplication, one worker per key, delays, back-off after errors.

There are two lanes: jobs that have begun go before new ones. Otherwise a thousand jobs that arrive
together would all prepare their data before the first of them gets its gang.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

Key = tuple[str, str]  # namespace, name
_FIRST, _LONGEST = 0.2, 60.0  # s, delays of the back-off
TOGETHER = 0.5  # s within which the pods of a gang usually start
BEGUN, NEW = 0, 1  # lanes


@dataclass
class Queue:
    """Level-triggered: a key that is added while it is processed is processed once more."""

    _ready: asyncio.PriorityQueue[tuple[int, int, Key]] = field(
        default_factory=asyncio.PriorityQueue
    )
    _order: Iterator[int] = field(default_factory=count)
    _queued: dict[Key, int] = field(default_factory=dict)  # lane
    _working: dict[Key, float] = field(default_factory=dict)  # monotonic time of the start
    _again: set[Key] = field(default_factory=set)
    _timers: dict[Key, asyncio.TimerHandle] = field(default_factory=dict)
    _failures: dict[Key, int] = field(default_factory=dict)

    def add(self, key: Key, lane: int = BEGUN) -> None:
        """Process a key as soon as a worker is free and no earlier lane has a key."""
        if key in self._working:
            self._again.add(key)
        elif lane < self._queued.get(key, NEW + 1):
            # The entry of a later lane remains in the queue and is skipped when it is reached.
            self._queued[key] = lane
            self._ready.put_nowait((lane, next(self._order), key))

    def add_new(self, key: Key) -> None:
        """Process a key when no key of a job that has begun is waiting."""
        self.add(key, NEW)

    def add_after(self, key: Key, seconds: float) -> None:
        """Process a key later. Of several timers of a key the earliest is kept."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= at:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(at, self._fire, key)

    def add_soon(self, key: Key) -> None:
        """Process a key after a short delay, together with other changes until then."""
        self.add_after(key, TOGETHER)

    def _fire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def __len__(self) -> int:
        return len(self._queued)

    def longest(self) -> tuple[Key, float] | None:
        """Return the key that has been processed for the longest, and for how many seconds."""
        if not self._working:
            return None
        key = min(self._working, key=self._working.__getitem__)
        return key, time.monotonic() - self._working[key]

    async def work(self, handle: Callable[[Key], Awaitable[float | None]]) -> None:
        """Process keys until cancelled.

        `handle` returns the seconds after which the key is added again, or None.
        """
        while True:
            # Without this a queue that is never empty would starve watches and signal handlers.
            await asyncio.sleep(0)
            lane, _, key = await self._ready.get()
            if self._queued.get(key) != lane:
                continue
            del self._queued[key]
            self._working[key] = time.monotonic()
            delay: float | None = None
            try:
                delay = await handle(key)
                self._failures.pop(key, None)
            except RetryError:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                delay = min(_LONGEST, _FIRST * 2 ** min(failures, 10))
            finally:
                del self._working[key]
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            if delay is not None:
                self.add_after(key, delay)

    def close(self) -> None:
        """Cancel all timers."""
        with contextlib.suppress(KeyError):
            while True:
                _, timer = self._timers.popitem()
                timer.cancel()


class RetryError(Exception):
    """The key could not be processed now; it is added again after a back-off."""
