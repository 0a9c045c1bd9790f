"""The health endpoint names parts that hang and caches that are not filled."""

import asyncio
import urllib.error
import urllib.request

import pytest

from finetune_local.ports import free_port
from finetune_operator.health import Health
from finetune_operator.queue import Queue


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_part_without_activity_is_named():
    clock = Clock()
    health = Health(clock=clock)
    pods, jobs = health.heart("watch on pods", 240), health.heart("watch on jobs", 400)
    clock.now = 241
    jobs.beat()
    assert health.late() == ["watch on pods: no activity for 241 s, 240 s are allowed"]
    pods.beat()
    assert health.late() == []


def test_a_worker_that_hangs_is_named():
    health = Health(longest=lambda: (("team", "job"), 601.0))
    assert health.late() == ["worker on team/job: reconciling for 601 s, 600 s are allowed"]


async def test_the_queue_reports_the_key_that_is_processed_for_the_longest():
    queue, hang = Queue(), asyncio.Event()

    async def handle(_) -> None:
        await hang.wait()

    worker = asyncio.create_task(queue.work(handle))
    queue.add(("team", "job"))
    await asyncio.sleep(0.1)
    longest = queue.longest()
    assert longest is not None
    assert longest[0] == ("team", "job")
    assert longest[1] >= 0.05
    hang.set()
    await asyncio.sleep(0.05)
    assert queue.longest() is None
    worker.cancel()


def test_a_refused_namespace_does_not_prevent_readiness_if_another_one_is_served():
    health = Health()
    first, second = (
        health.heart(f"watch on pods in {name}", 240, filled=False, kind="pods") for name in "ab"
    )
    first.refuse("refused (403)")
    assert health.unfilled() == [
        "watch on pods in a: refused (403)",
        "watch on pods in b: not listed yet",
    ]
    second.refuse("refused (403)")
    assert len(health.unfilled()) == 2
    second.fill()
    assert health.unfilled() == []
    first.fill()
    assert first.refusal == ""


async def test_readiness_needs_filled_caches_and_liveness_and_both_give_the_reason():
    clock, port = Clock(), free_port()
    health = Health(clock=clock, role=lambda: "standby")
    heart = health.heart("watch on jobs", 400, filled=False)
    task = asyncio.create_task(health.run(port))
    await asyncio.sleep(0.1)

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    assert (await asyncio.to_thread(ask, "/healthz"))[0] == 200
    code, text = await asyncio.to_thread(ask, "/readyz")
    assert (code, text.splitlines()[0]) == (503, "watch on jobs: not listed yet")
    heart.fill()
    code, text = await asyncio.to_thread(ask, "/readyz")
    assert (code, "standby" in text) == (200, True)
    clock.now = 500
    for path in ("/healthz", "/readyz"):
        code, text = await asyncio.to_thread(ask, path)
        assert code == 503
        assert "watch on jobs: no activity for 500 s, 400 s are allowed" in text
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_the_endpoint_listens_on_addresses_of_both_families(address):
    port = free_port()
    task = asyncio.create_task(Health().run(port))
    await asyncio.sleep(0.1)

    def ask() -> int:
        with urllib.request.urlopen(f"http://{address}:{port}/healthz", timeout=5) as response:
            return response.status

    assert await asyncio.to_thread(ask) == 200
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
