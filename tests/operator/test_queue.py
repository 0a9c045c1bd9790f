"""The work queue: each key once, one worker per key, no starvation."""

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


async def test_a_key_that_is_added_repeatedly_is_processed_once():
    queue, seen = Queue(), []

    async def handle(key: Key) -> None:
        seen.append(key)

    for _ in range(5):
        queue.add(A)
    queue.add(B)
    await run(queue, handle, 0.05)
    assert sorted(seen) == [A, B]


async def test_a_key_added_while_it_is_processed_is_processed_again_afterwards():
    queue, active, most, count = Queue(), 0, 0, 0

    async def handle(_: Key) -> None:
        nonlocal active, most, count
        active, count = active + 1, count + 1
        most = max(most, active)
        if count == 1:
            queue.add(A)  # while it is processed
        await asyncio.sleep(0.02)
        active -= 1

    queue.add(A)
    await run(queue, handle, 0.15)
    assert (most, count) == (1, 2)


class WithoutDelays(Queue):
    """Records the delays and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def add_after(self, key: Key, seconds: float) -> None:
        self.delays.append(seconds)
        if len(self.delays) < 12:
            self.add(key)


async def test_a_failing_key_is_retried_with_growing_delays():
    queue = WithoutDelays()

    async def handle(_: Key) -> None:
        raise RetryError

    queue.add(A)
    await run(queue, handle, 0.2)
    assert queue.delays[:3] == [0.4, 0.8, 1.6]
    assert queue.delays == sorted(queue.delays)
    assert queue.delays[-1] == 60


async def test_the_earliest_of_several_timers_is_kept():
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


async def test_a_key_that_is_always_added_again_does_not_starve_others():
    queue, seen = Queue(), []

    async def handle(key: Key) -> float | None:
        seen.append(key)
        return 0 if key == A else None

    queue.add(A)
    queue.add(B)
    await asyncio.wait_for(run(queue, handle, 0.1), 2)
    assert B in seen
