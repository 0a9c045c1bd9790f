"""The work queue: each key once, one worker per key, no starvation, and fair to namespaces."""

import asyncio
import contextlib

import pytest

from finetune_operator.queue import PER_NAMESPACE, Key, Queue, RetryError

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


# Namespaces


async def test_slow_jobs_of_one_namespace_leave_workers_to_the_others():
    queue, seen = Queue(), []

    async def handle(key: Key) -> None:
        seen.append(key)
        await asyncio.sleep(9 if key[0] == "slow" else 0)

    for number in range(100):
        queue.add(("slow", f"j{number}"))
    queue.add(("other", "a"))
    await run(queue, handle, 0.1, workers=PER_NAMESPACE + 1)
    assert ("other", "a") in seen
    assert len([key for key in seen if key[0] == "slow"]) == PER_NAMESPACE


async def test_namespaces_are_served_in_rotation():
    queue, seen = Queue(), []

    async def handle(key: Key) -> None:
        seen.append(key[0])

    for number in range(20):
        queue.add(("many", f"j{number}"))
    for number in range(2):
        queue.add(("few", f"j{number}"))
    await run(queue, handle, 0.1, workers=1)
    assert len(seen) == 22
    assert "few" not in seen[4:]


@pytest.mark.parametrize("lane", ["add_new", "add_ended"])
async def test_a_busy_namespace_does_not_hold_back_later_lanes_of_others(lane):
    """Jobs that have begun go first within the workers that their namespace may use."""
    queue, seen = Queue(), []

    async def handle(key: Key) -> float | None:
        seen.append(key)
        await asyncio.sleep(0.001)
        return 0 if key[0] == "busy" else None

    for number in range(100):
        queue.add(("busy", f"j{number}"))
    getattr(queue, lane)(("other", "a"))
    await run(queue, handle, 0.1, workers=PER_NAMESPACE + 1)
    assert ("other", "a") in seen


async def test_jobs_that_have_begun_go_before_new_ones_and_those_before_ended_ones():
    queue, seen = Queue(), []

    async def handle(key: Key) -> None:
        seen.append(key[1])

    queue.add_ended(("default", "ended"))
    queue.add_ended(("default", "changed"))
    queue.add_new(("default", "new"))
    queue.add(("default", "begun"))
    queue.add(("default", "changed"))
    assert len(queue) == 4
    await run(queue, handle, 0.1, workers=1)
    assert seen == ["begun", "changed", "new", "ended"]
    assert len(queue) == 0


async def test_a_worker_that_is_stopped_while_it_waits_loses_no_key():
    queue, seen = Queue(), []

    async def handle(key: Key) -> None:
        seen.append(key)

    first, second = (asyncio.create_task(queue.work(handle)) for _ in range(2))
    await asyncio.sleep(0.01)
    queue.add(A)  # wakes the worker that waits for longest
    first.cancel()
    await asyncio.sleep(0.05)
    assert seen == [A]
    second.cancel()
