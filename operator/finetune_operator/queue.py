"""The work queue of keys: deduplication, one worker per key, delays, back-off after errors.

There are three lanes: jobs that have begun go before new ones, otherwise a thousand jobs that
arrive together would all prepare their data before the first of them gets its gang. Jobs that have
ended go last.

Within a lane the namespaces are served in rotation, and none occupies more than PER_NAMESPACE
workers: what one namespace does, such as jobs whose requests are slow, delays no other.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Key = tuple[str, str]  # namespace, name
_FIRST, _LONGEST = 0.2, 60.0  # s, delays of the back-off
TOGETHER = 0.5  # s within which the pods of a gang usually start
BEGUN, NEW, ENDED = 0, 1, 2  # lanes
WORKERS = 32
PER_NAMESPACE = 8
"""Workers that one namespace may occupy: enough for its jobs, and a quarter of all."""


class _Lane:
    """Keys in the order of their arrival, by namespace; the namespace that waited longest first."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, deque[Key]] = OrderedDict()

    def put(self, key: Key) -> None:
        self._keys.setdefault(key[0], deque()).append(key)

    def take(self, busy: Counter[str]) -> Key | None:
        """Remove and return the next key of a namespace that may occupy another worker."""
        # At most WORKERS / PER_NAMESPACE namespaces are passed over.
        for namespace, keys in self._keys.items():
            if busy[namespace] < PER_NAMESPACE:
                key = keys.popleft()
                if keys:
                    self._keys.move_to_end(namespace)
                else:
                    del self._keys[namespace]
                return key
        return None


@dataclass
class Queue:
    """Level-triggered: a key that is added while it is processed is processed once more."""

    _lanes: tuple[_Lane, ...] = field(default_factory=lambda: (_Lane(), _Lane(), _Lane()))
    _queued: dict[Key, int] = field(default_factory=dict)  # lane
    _working: dict[Key, float] = field(default_factory=dict)  # monotonic time of the start
    _busy: Counter[str] = field(default_factory=Counter)  # workers by namespace
    _idle: deque[asyncio.Future[None]] = field(default_factory=deque)  # workers that wait
    _again: set[Key] = field(default_factory=set)
    _timers: dict[Key, asyncio.TimerHandle] = field(default_factory=dict)
    _failures: dict[Key, int] = field(default_factory=dict)

    def add(self, key: Key, lane: int = BEGUN) -> None:
        """Process a key as soon as a worker is free and no earlier lane has a key."""
        if key in self._working:
            self._again.add(key)
        elif lane < self._queued.get(key, len(self._lanes)):
            # The entry of a later lane remains in the queue and is skipped when it is reached.
            self._queued[key] = lane
            self._lanes[lane].put(key)
            self._wake()

    def add_new(self, key: Key) -> None:
        """Process a key when no key of a job that has begun is waiting."""
        self.add(key, NEW)

    def add_ended(self, key: Key) -> None:
        """Process a key of a job that has ended when no other is waiting."""
        self.add(key, ENDED)

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
            key = await self._next()
            self._working[key] = time.monotonic()
            self._busy[key[0]] += 1
            delay: float | None = None
            try:
                delay = await handle(key)
                self._failures.pop(key, None)
            except RetryError:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                delay = min(_LONGEST, _FIRST * 2 ** min(failures, 10))
            finally:
                del self._working[key]
                self._release(key[0])
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            if delay is not None:
                self.add_after(key, delay)

    async def _next(self) -> Key:
        """Return the next key, and remove it; wait until there is one."""
        while (key := self._take()) is None:
            waiting = asyncio.get_running_loop().create_future()
            self._idle.append(waiting)
            try:
                await waiting
            except asyncio.CancelledError:
                if waiting.done() and not waiting.cancelled():
                    self._wake()  # Another worker takes what this one was woken for.
                raise
        return key

    def _take(self) -> Key | None:
        for number, lane in enumerate(self._lanes):
            while (key := lane.take(self._busy)) is not None:
                if self._queued.get(key) == number:
                    del self._queued[key]
                    return key
        return None

    def _wake(self) -> None:
        """Wake the worker that has waited for longest."""
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _release(self, namespace: str) -> None:
        self._busy[namespace] -= 1
        if not self._busy[namespace]:
            del self._busy[namespace]

    def close(self) -> None:
        """Cancel all timers."""
        with contextlib.suppress(KeyError):
            while True:
                _, timer = self._timers.popitem()
                timer.cancel()


class RetryError(Exception):
    """The key could not be processed now; it is added again after a back-off."""
