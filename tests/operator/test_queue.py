"""The work queue: each key once, one worker per key, nobody starves."""

import asyncio
import contextlib

from finetune_operator.queue import Key, Queue, RetryError

A, B = ("default", "a"), ("default", "b")


async def run(queue: Queue, handle, seconds: float, workers: int = 2) -> None:
    tasks = [asyncio.create_task(queue.work(handle)) for _ in range(workers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    queue.close()


async def test_a_key_added_often_is_handled_once():
    queue, seen = Queue(), []

    async def handle(key: Key) -> None:
        seen.append(key)

    for _ in range(5):
        queue.add(A)
    queue.add(B)
    await run(queue, handle, 0.05)
    assert sorted(seen) == [A, B]


async def test_a_key_is_never_handled_twice_at_once_and_not_forgotten():
    queue, active, most, count = Queue(), 0, 0, 0

    async def handle(_: Key) -> None:
        nonlocal active, most, count
        active, count = active + 1, count + 1
        most = max(most, active)
        if count == 1:
            queue.add(A)  # while it is worked on
        await asyncio.sleep(0.02)
        active -= 1

    queue.add(A)
    await run(queue, handle, 0.15)
    assert (most, count) == (1, 2)


class Impatient(Queue):
    """Notes how long it should wait, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def add_after(self, key: Key, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) < 12:
            self.add(key)


async def test_a_failing_key_is_tried_again_with_growing_pauses():
    queue = Impatient()

    async def handle(_: Key) -> None:
        raise RetryError

    queue.add(A)
    await run(queue, handle, 0.2)
    assert queue.pauses[:3] == [0.4, 0.8, 1.6]
    assert queue.pauses == sorted(queue.pauses)
    assert queue.pauses[-1] == 60


async def test_of_several_timers_the_earliest_counts():
    queue, times = Queue(), []
    begin = asyncio.get_running_loop().time()

    async def handle(_: Key) -> None:
        times.append(asyncio.get_running_loop().time() - begin)

    queue.add_after(A, 5)
    queue.add_after(A, 0.1)
    queue.add_after(A, 3)
    await run(queue, handle, 0.3)
    assert len(times) == 1
    assert 0.09 < times[0] < 0.3


async def test_a_key_that_always_wants_more_starves_nobody():
    queue, seen = Queue(), []

    async def handle(key: Key) -> float | None:
        seen.append(key)
        return 0 if key == A else None

    queue.add(A)
    queue.add(B)
    await asyncio.wait_for(run(queue, handle, 0.1), 2)
    assert B in seen
